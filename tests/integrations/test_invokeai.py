"""The nodes of InvokeAI, in an imitation of its ``invocation_api`` with the signatures of its revision 0aa13c0.

With ``INVOKEAI_PYTHON``, the Python of an environment with InvokeAI and the client, also in InvokeAI itself.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from hybridge.errors import ClientError

PACK = Path(__file__).parents[2] / "integrations" / "invokeai" / "hybridge_nodes" / "__init__.py"


class BaseInvocation(BaseModel):
    model_config = ConfigDict(protected_namespaces=())
    invocation_type: ClassVar[str] = ""


class WithMetadata(BaseModel):
    metadata: Any = None


class WithBoard(BaseModel):
    board: Any = None


class LatentsField(BaseModel):
    latents_name: str
    seed: int | None = None


class ImageField(BaseModel):
    image_name: str


class InvocationContext:
    """Keeps tensors and pictures by name, as InvokeAI's services do."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.told: list[str] = []
        self.tensors = SimpleNamespace(save=self._save_tensor, load=lambda name: self.kept[name].clone())
        self.images = SimpleNamespace(save=self._save_image, get_pil=self._get_pil)
        self.util = SimpleNamespace(signal_progress=self._signal_progress)

    def _save_tensor(self, tensor: torch.Tensor) -> str:
        self.kept["tensor"] = tensor
        return "tensor"

    def _save_image(
        self, image: Image.Image, board_id: str | None = None, image_category: str = "general", metadata: Any = None
    ) -> Any:
        self.kept["image"] = image
        return SimpleNamespace(image_name="image", width=image.width, height=image.height)

    def _get_pil(self, image_name: str, mode: str | None = None) -> Image.Image:
        return self.kept[image_name].convert(mode)

    def _signal_progress(
        self, message: str, percentage: float | None = None, image: Any = None, image_size: Any = None
    ) -> None:
        self.told.append(message)


def invocation(
    invocation_type: str,
    title: str | None = None,
    tags: list[str] | None = None,
    category: str | None = None,
    version: str | None = None,
    use_cache: bool | None = True,
) -> Any:
    def named(cls: Any) -> Any:
        cls.invocation_type = invocation_type
        return cls

    return named


def input_field(default: Any = ..., *, description: str | None = None, input: Any = None) -> Any:
    return Field(default, description=description)


@pytest.fixture
def pack(server: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as InvokeAI imports it, with a profile of the server in the environment."""
    api = ModuleType("invokeai.invocation_api")
    api.BaseInvocation, api.WithMetadata, api.WithBoard = BaseInvocation, WithMetadata, WithBoard
    api.LatentsField, api.ImageField, api.InvocationContext = LatentsField, ImageField, InvocationContext
    api.Input, api.InputField, api.invocation = SimpleNamespace(Connection="connection"), input_field, invocation
    api.ImageOutput = SimpleNamespace(build=lambda image_dto: image_dto)
    api.LatentsOutput = SimpleNamespace(
        build=lambda latents_name, latents, seed=None: SimpleNamespace(
            latents=LatentsField(latents_name=latents_name, seed=seed), width=8 * latents.size()[3]
        )
    )
    monkeypatch.setitem(sys.modules, "invokeai", ModuleType("invokeai"))
    monkeypatch.setitem(sys.modules, "invokeai.invocation_api", api)
    monkeypatch.setenv("HYBRIDGE_PROFILE_DESKTOP_URL", server)
    spec = importlib.util.spec_from_file_location(PACK.parent.stem, PACK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # InvokeAI does so, whatever was there
    spec.loader.exec_module(module)
    return module


def test_a_picture_from_latents(pack: ModuleType, engines: Any) -> None:
    """InvokeAI's latents are scaled."""
    context = InvocationContext()
    context.kept["latents"] = z = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(5))
    node = pack.HybridgeLatentsToImage(latents=LatentsField(latents_name="latents"), server="desktop", model="sdxl")
    made = node.invoke(context)
    with torch.inference_mode():
        (expected,) = VaeImageProcessor().postprocess(engines["sdxl"].module.decode(z / 0.13025).sample)
    assert (made.width, made.height) == (96, 64)
    assert context.kept["image"].tobytes() == expected.tobytes()
    assert context.told == ["Decoding at the server"]


def test_latents_from_a_picture(pack: ModuleType, engines: Any, photograph: Path) -> None:
    context = InvocationContext()
    context.kept["photograph"] = Image.open(photograph).resize((96, 64)).convert("RGBA")
    node = pack.HybridgeImageToLatents(image=ImageField(image_name="photograph"), server="desktop", model="sd-v1")
    made = node.invoke(context)
    pixels = VaeImageProcessor().preprocess(context.kept["photograph"].convert("RGB"))
    with torch.inference_mode():
        expected = engines["sd-v1"].module.encode(pixels).latent_dist.mode() * 0.18215
    assert (made.latents.latents_name, made.width) == ("tensor", 96)
    assert torch.allclose(context.kept["tensor"], expected, atol=1e-5)


@pytest.mark.parametrize("server", ["", "http://me:a-secret@box", "box:8000", "gpu.box"], indirect=False)
def test_no_address_in_a_workflow(monkeypatch: pytest.MonkeyPatch, server: str, request: Any) -> None:
    monkeypatch.setenv("HYBRIDGE_PROFILE_DESKTOP_URL", "http://127.0.0.1:9")
    module = request.getfixturevalue("pack")
    with pytest.raises(ClientError, match="a node takes the name of a profile") as caught:
        module.client_of(server)
    assert "a-secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9"])
def test_errors_name_the_profile_and_no_address(
    pack: ModuleType, server: str, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """A model that the server has not; and no server."""
    monkeypatch.setenv("HYBRIDGE_PROFILE_DESKTOP_URL", url or server)
    context = InvocationContext()
    context.kept["latents"] = torch.zeros(1, 4, 4, 4)
    node = pack.HybridgeLatentsToImage(latents=LatentsField(latents_name="latents"), server="desktop", model="sdx")
    with pytest.raises(RuntimeError, match="the server 'desktop'") as caught:
        node.invoke(context)
    assert url or "no such model on this server" in str(caught.value)
    assert "127.0.0.1" not in "".join(traceback.format_exception(caught.value))


def test_it_stays_thin() -> None:
    assert len(PACK.read_text().splitlines()) < 100


#: Where InvokeAI defines what the imitation imitates, and the parameters that the nodes pass.
SIGNATURES = {
    "app/invocations/baseinvocation.py": {"invocation": "invocation_type title tags category version"},
    "app/invocations/fields.py": {"InputField": "default description input"},
    "app/invocations/primitives.py": {
        "ImageOutput.build": "image_dto",
        "LatentsOutput.build": "latents_name latents seed",
    },
    "app/services/shared/invocation_context.py": {
        "ImagesInterface.save": "image",
        "ImagesInterface.get_pil": "image_name mode",
        "TensorsInterface.save": "tensor",
        "TensorsInterface.load": "name",
        "UtilInterface.signal_progress": "message",
    },
}


@pytest.mark.skipif("INVOKEAI_DIR" not in os.environ, reason="INVOKEAI_DIR: the folder with the package invokeai")
def test_invokeai_has_these_signatures() -> None:
    package = Path(os.environ["INVOKEAI_DIR"], "invokeai")
    for file, signatures in SIGNATURES.items():
        tree = ast.parse((package / file).read_text())
        for name, parameters in signatures.items():
            found: Any = tree
            for part in name.split("."):
                found = next(one for one in found.body if getattr(one, "name", None) == part)
            assert set(parameters.split()) <= {one.arg for one in found.args.args}, name
    exported = {
        alias.name
        for node in ast.parse((package / "invocation_api" / "__init__.py").read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    wanted = next(
        node
        for node in ast.parse(PACK.read_text()).body
        if getattr(node, "module", "") == "invokeai.invocation_api"
    )
    assert {alias.name for alias in wanted.names} <= exported


@pytest.mark.skipif("INVOKEAI_PYTHON" not in os.environ, reason="INVOKEAI_PYTHON: the Python of InvokeAI")
def test_in_invokeai_itself(server: str, engines: Any, photograph: Path, tmp_path: Path) -> None:
    """Its loader of packs, graphs and session runner, on noise of its own and on a photograph."""
    shutil.copytree(PACK.parent, tmp_path / "nodes" / PACK.parent.name)
    Image.open(photograph).resize((96, 64)).save(tmp_path / "small.png")
    (tmp_path / "out").mkdir()
    arguments = [tmp_path / "nodes", tmp_path / "out", tmp_path / "small.png"]
    environment = {**os.environ, "HYBRIDGE_PROFILE_DESKTOP_URL": server, "INVOKEAI_ROOT": str(tmp_path)}
    command = [os.environ["INVOKEAI_PYTHON"], Path(__file__).parent / "real_invokeai.py", *arguments]
    subprocess.run([str(one) for one in command], env=environment, cwd=tmp_path, check=True)
    outline = json.loads((tmp_path / "out" / "outline.json").read_text())
    assert outline["sizes"] == [[96, 64]] * 3
    assert outline["messages"][:2] == ["Decoding at the server", "Saving image"]
    assert "no such model on this server" in outline["errors"][0][0]
    assert "a node takes the name of a profile" in outline["errors"][1][0]
    written = json.dumps([outline["workflows"], outline["messages"], outline["errors"][0]])
    assert "desktop" in written
    assert not any(one in written for one in (server, server.removeprefix("http://"), "a-secret"))
    noise, latents = (torch.load(tmp_path / "out" / f"{name}.pt").float() for name in ("noise", "latents"))
    pixels = VaeImageProcessor().preprocess(Image.open(tmp_path / "small.png").convert("RGB"))
    with torch.inference_mode():
        (expected,) = VaeImageProcessor().postprocess(engines["sdxl"].module.decode(noise / 0.13025).sample)
        mode = engines["sd-v1"].module.encode(pixels).latent_dist.mode() * 0.18215
    assert Image.open(tmp_path / "out" / "0.png").tobytes() == expected.tobytes()
    assert torch.allclose(latents, mode, atol=1e-5)
