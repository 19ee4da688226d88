"""The pack, imported as ComfyUI imports it, on a stand-in for ComfyUI's own modules."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from vae_classes.rows import ROWS

from hybridge.engine import Engine, EngineOptions, resolve
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

PACK = Path(__file__).parents[3] / "integrations" / "comfyui"

#: Of the small models of each class, those that the tests of the pack serve.
SERVED = (
    *("wan-2.1", "qwen-image", "qwen-image-2.1", "flux2", "hunyuan-image", "hunyuan-video", "hunyuan-video-1.5"),
    *("ltx-video", "ltx-video-0.9.1", "ltx-2", "cogvideox-2b", "mochi", "cosmos", "svd", "sana"),
)

#: The profile's address has this in it, and the profile has this key: nothing that ComfyUI stores may have either.
KEY = "hk-secret-of-the-test"


@pytest.fixture(scope="session")
def pack() -> Iterator[ModuleType]:
    """The package, under a name such as ComfyUI gives it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent / "fake"))
        name = "/comfyui/custom_nodes/hybridge-remote"  # ComfyUI takes the path
        spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        yield module
        for known in [
            known for known in sys.modules if known.partition(".")[0] in ("comfy", "comfy_api", "folder_paths")
        ]:
            del sys.modules[known]
        for known in [known for known in sys.modules if known.startswith(name)]:
            del sys.modules[known]


@pytest.fixture
def profile(pack: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Makes a profile of an address, and returns its name."""
    monkeypatch.setenv("HYBRIDGE_PROFILES", str(tmp_path / "profiles.json"))

    def made(address: str, name: str = "desktop") -> str:
        monkeypatch.setenv(f"HYBRIDGE_PROFILE_{name.upper()}_URL", address)
        monkeypatch.setenv(f"HYBRIDGE_PROFILE_{name.upper()}_KEY", KEY)
        return name

    yield made
    sys.modules[f"{pack.__name__}.servers"].close()


@pytest.fixture
def node(pack: ModuleType) -> Callable[..., tuple[Any, ...]]:
    """Runs a node by its class's name, as ComfyUI does: with the widgets' values by name."""
    nodes = sys.modules[f"{pack.__name__}.nodes"]

    def run(name: str, **inputs: Any) -> tuple[Any, ...]:
        kind = getattr(nodes, name)
        schema = kind.define_schema()
        given = {one.id: one.default for one in schema.inputs if hasattr(one, "default")} | inputs
        result = kind.execute(**given)
        assert len(result.args) in (0, len(schema.outputs))
        return tuple(result.args)

    return run


@pytest.fixture(scope="session")
def other_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Engine]]:
    """A small VAE of each class that ComfyUI has, and one of a class that it has not, each with its engine."""
    root: Path = tmp_path_factory.mktemp("models")
    made = {}
    for row in ROWS:
        if row.name in SERVED:
            module = row.make()
            module.save_pretrained(root / row.name)
            spec = resolve(f"{row.name}={root / row.name}")
            made[row.name] = module, Engine.load(spec, EngineOptions(device="cpu", exactness="bitwise"))
    return made


@pytest.fixture(scope="session")
def other_server(other_models: dict[str, tuple[Any, Engine]]) -> Iterator[str]:
    engines = {name: engine for name, (_, engine) in other_models.items()}
    with running(create_app(LocalBackend(engines))) as address:
        yield address
