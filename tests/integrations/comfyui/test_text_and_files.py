"""Text, previews and files of latents."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from text_servers import case_of, saved, serving

from hybridge.client import Client
from hybridge.engine import EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.models import TextSpec
from hybridge.protocol import read_latents

Node = Callable[..., tuple[Any, ...]]
MakeProfile = Callable[..., str]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextSpec]:
    root: Path = tmp_path_factory.mktemp("models")
    made = {}
    for name, case in (("sd1", "StableDiffusionPipeline"), ("wan", "WanPipeline"), ("ltx", "LTXPipeline")):
        spec = saved(case_of(case), root / name)
        made[name] = TextSpec(name, spec.source, spec.class_name)
    return made


@pytest.fixture(scope="module")
def text_server(texts: dict[str, TextSpec]) -> Iterator[str]:
    with serving(list(texts.values())) as address:
        yield address


def test_text_becomes_a_conditioning(
    node: Node, profile: MakeProfile, text_server: str, texts: dict[str, TextSpec]
) -> None:
    profile(text_server)
    text = "a (cat:1.4), " * 20
    with torch.inference_mode():
        (conditioning,) = node("HybridgeText", profile="desktop", model="sd1", text=text, clip_layer=-2)
    ((cond, others),) = conditioning
    engine = TextEngine.load(texts["sd1"].source, EngineOptions(device="cpu"))
    expected = engine.encode_as_comfyui({"prompt": text, "clip_layer": -2}).tensors
    assert torch.equal(cond, expected["cond"][0])
    assert cond.shape[1] > 77
    assert torch.equal(others["pooled_output"], expected["pooled_output"][0])
    ((video, others),) = node("HybridgeText", profile="desktop", model="wan", text="rain")[0]
    assert video.shape[1] == 512
    assert others == {"pooled_output": None}


def test_text_that_cannot_be_made_is_refused(node: Node, profile: MakeProfile, text_server: str) -> None:
    profile(text_server)
    with pytest.raises(RuntimeError, match="'ltx' on the server 'desktop' makes no text for ComfyUI"):
        node("HybridgeText", profile="desktop", model="ltx", text="rain")
    with pytest.raises(RuntimeError, match="textual inversion"):
        node("HybridgeText", profile="desktop", model="sd1", text="embedding:bad")
    with pytest.raises(RuntimeError, match="has no `prompt_2`"):
        node("HybridgeText", profile="desktop", model="sd1", text="rain", second_text="sun")
    with pytest.raises(RuntimeError, match="several models: write one of sd1, wan, ltx"):
        node("HybridgeText", profile="desktop", text="rain")


def test_a_preview_is_shown_before_the_picture(
    pack: ModuleType, node: Node, profile: MakeProfile, server: str
) -> None:
    profile(server)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    bar = sys.modules["comfy.utils"]
    bar.seen.clear()
    found = node("HybridgePreviewDecode", samples={"samples": latents}, profile="desktop", model="sd-v1")[0]
    shown = [preview for _, _, preview in bar.seen if preview is not None]
    assert len(shown) == 1
    kind, picture, pixels = shown[0]
    assert (kind, pixels) == ("JPEG", 768)
    assert picture.size == (128, 128)  # of the tiny autoencoder that is served, too
    (plain,) = node("HybridgeDecode", samples={"samples": latents}, profile="desktop", model="sd-v1")
    assert torch.equal(found, plain)


def test_a_model_without_a_preview_is_decoded_all_the_same(
    pack: ModuleType, node: Node, profile: MakeProfile, other_server: str
) -> None:
    profile(other_server)
    bar = sys.modules["comfy.utils"]
    bar.seen.clear()
    latents = {"samples": torch.zeros(1, 128, 2, 2)}
    (found,) = node("HybridgePreviewDecode", samples=latents, profile="desktop", model="flux2")
    assert found.shape == (1, 32, 32, 3)
    assert not [preview for _, _, preview in bar.seen if preview is not None]
    video = {"samples": torch.zeros(1, 16, 2, 4, 4)}
    (frames,) = node("HybridgePreviewDecode", samples=video, profile="desktop", model="wan-2.1")
    assert frames.shape == (5, 32, 32, 3)


@pytest.fixture
def folders(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys.modules["folder_paths"], "base", tmp_path)
    for name in ("input", "output"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (1, 128, 4, 4), (1, 128, 2, 4, 4), (1, 16, 3, 4, 4)])
def test_latents_are_saved_and_loaded(node: Node, folders: Path, shape: tuple[int, ...]) -> None:
    latents = torch.randn(shape)
    node("HybridgeSaveLatents", samples={"samples": latents, "noise_mask": torch.ones(1)})
    (saved_file,) = (folders / "output" / "latents").glob("*")
    with safe_open(saved_file, "pt") as file:
        assert file.metadata() == {"space": "pipeline" if shape[1] == 128 else "vae"}
    name = f"latents/{saved_file.name} [output]"
    (loaded,) = node("HybridgeLoadLatents", file=name, space="as the file says")
    assert torch.equal(loaded["samples"], latents)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["ltx-2", "cosmos", "ltx-video-0.9.1", "wan-2.1", "flux2", "cogvideox-2b"])
def test_files_of_a_named_model(
    pack: ModuleType,
    node: Node,
    profile: MakeProfile,
    folders: Path,
    other_server: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are what `hybridge decode` takes for this model, and come back as they were."""
    profile(other_server)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # without the noise of a decode in ComfyUI
    (vae,) = node("HybridgeVAE", profile="desktop", model=name, precision="float")
    frames = [2] if vae.latent_dim == 3 else []
    latents = torch.randn(1, vae.latent_channels, *frames, 4, 4)
    node("HybridgeSaveLatents", samples={"samples": latents}, profile="desktop", model=name)
    (saved_file,) = (folders / "output" / "latents").glob("*")
    file = read_latents(saved_file)
    assert file.model == name
    how = {"decode_timestep": 0.05, "decode_noise_scale": 0.0} if name == "ltx-video-0.9.1" else {}
    with Client(other_server) as client:
        pixels = torch.as_tensor(client.decode(saved_file, output="unit", model=name, **how))
    if not how:  # which a file cannot say
        there = vae.decode(latents)
        torch.testing.assert_close(pixels.movedim(-3, -1).reshape(there.shape), there)
    given = {"file": f"latents/{saved_file.name} [output]", "space": "as the file says"}
    (loaded,) = node("HybridgeLoadLatents", **given, profile="desktop", model=name)
    torch.testing.assert_close(loaded["samples"], latents)
    other = "wan-2.1" if file.scaling.by == "model" else "cosmos"
    with pytest.raises(RuntimeError, match="has latents in the space"):
        node("HybridgeLoadLatents", **given, profile="desktop", model=other)


def test_frames_that_have_sound_beside_them(node: Node, profile: MakeProfile, folders: Path, server: str) -> None:
    """ComfyUI has LTX-2's two latents in one object."""

    class Both:
        is_nested = True

        def unbind(self) -> list[torch.Tensor]:
            return [torch.ones(1, 4, 8, 8), torch.zeros(1, 8, 3, 16)]

    node("HybridgeSaveLatents", samples={"samples": Both()})
    (saved_file,) = (folders / "output" / "latents").glob("*")
    with safe_open(saved_file, "pt") as file:
        assert torch.equal(file.get_tensor("latents"), torch.ones(1, 4, 8, 8))
    profile(server)
    (pixels,) = node("HybridgeDecode", samples={"samples": Both()}, profile="desktop", model="sd-v1")
    assert pixels.shape == (1, 64, 64, 3)


def test_files_of_others_are_loaded_or_refused(pack: ModuleType, node: Node, folders: Path) -> None:
    latents, nodes = torch.randn(1, 4, 8, 8), sys.modules[f"{pack.__name__}.nodes"]
    save_file(
        {"latent_tensor": latents, "latent_format_version_0": torch.tensor([])}, folders / "input" / "a.latent"
    )
    save_file({"x": latents}, folders / "input" / "b.safetensors")
    save_file({"latents": latents}, folders / "input" / "c.safetensors", {"space": "pipeline"})
    (folders / "input" / "d.safetensors").write_bytes(b"not a file of tensors")
    (folders / "secret.safetensors").write_bytes(b"")

    def load(name: str, space: str = "as the file says") -> torch.Tensor:
        return node("HybridgeLoadLatents", file=name, space=space)[0]["samples"]

    assert torch.equal(load("a.latent"), latents)
    with pytest.raises(RuntimeError, match="does not say in which space"):
        load("b.safetensors")
    assert torch.equal(load("b.safetensors", "vae"), latents)
    with pytest.raises(RuntimeError, match="as diffusers' pipelines scale them"):
        load("c.safetensors")
    with pytest.raises(RuntimeError, match=r"^d\.safetensors cannot be read as tensors"):
        load("d.safetensors")
    with pytest.raises(RuntimeError, match="There is no file"):
        load("../secret.safetensors")
    first = nodes.HybridgeLoadLatents.fingerprint_inputs("a.latent")
    save_file({"latent_tensor": -latents}, folders / "input" / "a.latent")
    assert nodes.HybridgeLoadLatents.fingerprint_inputs("a.latent") != first


def test_workflows_hold_profiles_alone_and_fit_the_nodes(pack: ModuleType) -> None:
    nodes = sys.modules[f"{pack.__name__}.nodes"]
    folder = Path(__file__).parents[3] / "integrations" / "comfyui" / "example_workflows"
    files = sorted(folder.glob("*.json"))
    assert len(files) >= 3
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "://" not in text
        assert path.with_suffix(".jpg").is_file()
        for node in json.loads(text)["nodes"]:
            if not node["type"].startswith("Hybridge"):
                continue
            schema = getattr(nodes, node["type"]).define_schema()
            widgets = [one for one in schema.inputs if hasattr(one, "default")]
            assert len(node["widgets_values"]) == len(widgets), node["type"]
            assert [one["name"] for one in node["inputs"]] == [
                one.id for one in schema.inputs if one not in widgets
            ]
            for widget, value in zip(widgets, node["widgets_values"], strict=True):
                assert value in getattr(widget, "options", [value])
                assert widget.id != "profile" or value == ""
