"""TAESD as its author and ComfyUI's ``vae_approx`` have it: an encoder and a decoder, each a file of its own."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hybridge.engine import Engine, EngineOptions, resolve
from hybridge.errors import ModelUnavailable, RequestError
from hybridge.models import ModelSpec
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

CPU = EngineOptions(device="cpu", dtype="float32")
WIDTH = 8


def conv(before: int, after: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, **options)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(WIDTH, WIDTH), nn.ReLU(), conv(WIDTH, WIDTH), nn.ReLU(), conv(WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


def encoder(channels: int) -> nn.Sequential:
    parts: list[nn.Module] = [conv(3, WIDTH), Block()]
    for _ in range(3):
        parts += [conv(WIDTH, WIDTH, stride=2, bias=False), Block(), Block(), Block()]
    return nn.Sequential(*parts, conv(WIDTH, channels)).eval()


def decoder(channels: int) -> nn.Sequential:
    parts: list[nn.Module] = [Clamp(), conv(channels, WIDTH), nn.ReLU()]
    for _ in range(3):
        parts += [Block(), Block(), Block(), nn.Upsample(scale_factor=2), conv(WIDTH, WIDTH, bias=False)]
    return nn.Sequential(*parts, Block(), conv(WIDTH, 3)).eval()


def save_half(half: nn.Module, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in half.state_dict().items()}, path)


@pytest.fixture
def halves(tmp_path: Path) -> dict[str, tuple[nn.Sequential, nn.Sequential]]:
    """A folder with all four that their author publishes, and what is in it."""
    torch.manual_seed(0)
    made = {}
    for name, channels in (("taesd", 4), ("taesdxl", 4), ("taesd3", 16), ("taef1", 16)):
        made[name] = encoder(channels), decoder(channels)
        save_half(made[name][0], tmp_path / f"{name}_encoder.safetensors")
        save_half(made[name][1], tmp_path / f"{name}_decoder.safetensors")
    return made


@torch.no_grad()
def check(spec: ModelSpec, encoder: nn.Module | None, decoder: nn.Module) -> None:
    """The engine's pictures and latents are those of the modules that the files were written from."""
    engine = Engine.load(spec, CPU)
    latents = torch.randn(1, spec.latent_channels, 6, 5)
    sent = spec.normalisation  # a tiny autoencoder reads a pipeline's latents
    assert torch.allclose(engine.decode(latents, sent=sent), decoder(latents) * 2 - 1, atol=1e-5)
    if encoder is not None:
        image = torch.rand(1, 3, 48, 40)
        found = engine.encode(image, wanted=sent, value_range="unit")
        assert torch.allclose(found, encoder(image), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parent"), [("taesd", "sd-v1"), ("taesdxl", "sdxl"), ("taesd3", "sd3"), ("taef1", "flux")]
)
def test_the_pair_that_is_called_like_the_model(halves, tmp_path: Path, name: str, parent: str) -> None:
    spec = resolve(f"{name}={tmp_path}")
    assert (spec.kind, spec.parent, spec.has_encoder) == ("tiny", parent, True)
    check(spec, *halves[name])


def test_a_pair_that_is_asked_for(halves, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"saw taef1, taesd, taesd3, taesdxl.*mine=.*:taef1"):
        resolve(f"mine={tmp_path}")
    spec = resolve(f"mine={tmp_path}:taesdxl")
    assert (spec.parent, spec.title) == ("sdxl", "Single file with the scaling of taesdxl, as asked for")
    check(spec, *halves["taesdxl"])


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_either_file_brings_the_other(halves, tmp_path: Path, half: str) -> None:
    spec = resolve(f"mine={tmp_path}/taesd3_{half}.safetensors")
    assert spec.parent == "sd3"
    assert "told by its file" in spec.title
    check(spec, *halves["taesd3"])


@pytest.mark.parametrize("start", ["taesd_", ""])
def test_both_halves_in_one_file(halves, tmp_path: Path, start: str) -> None:
    tensors = {"vae_scale": torch.ones(())} if start else {}
    for half, module in zip(("encoder", "decoder"), halves["taesd"], strict=True):
        tensors |= {f"{start}{half}.{key}": tensor.contiguous() for key, tensor in module.state_dict().items()}
    save_file(tensors, tmp_path / "both.safetensors")
    with pytest.raises(ModelUnavailable, match=r":taesd, or :taesdxl"):
        resolve(f"mine={tmp_path}/both.safetensors")
    check(resolve(f"mine={tmp_path}/both.safetensors:taesd"), *halves["taesd"])


def test_a_decoder_alone_refuses_to_encode(halves, tmp_path: Path) -> None:
    (tmp_path / "taesd_encoder.safetensors").unlink()
    spec = resolve(f"small={tmp_path}/taesd_decoder.safetensors")
    assert (spec.has_encoder, spec.parent) == (False, "sd-v1")
    check(spec, None, halves["taesd"][1])
    whole = resolve(f"taesdxl={tmp_path}")
    picture = torch.zeros(1, 3, 64, 64)
    engine = Engine.load(spec, CPU)
    assert engine.weights_bytes == Engine.expected_bytes(spec, CPU) < Engine.expected_bytes(whole, CPU)
    with pytest.raises(RequestError, match="small cannot encode: saw the weights of a decoder alone"):
        engine.encode(picture)
    body, query = picture.numpy().tobytes(), {"shape": [1, 3, 64, 64], "dtype": "float32"}
    headers = {"content-type": "tensor/binary"}
    with running(create_app(LocalBackend({}, cold=[spec, whole], options=CPU))) as address:
        refused = httpx.post(f"{address}/v1/small/encode", params=query, content=body, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (400, "RequestError")
        assert "decoder alone" in refused.json()["error"]
        taken = httpx.post(f"{address}/predict", params=query, content=body, headers=headers)
        assert (taken.status_code, taken.headers["hybridge-model"]) == (200, "taesdxl")
        latents = httpx.post(
            f"{address}/v1/small/decode",
            params={"shape": [1, 4, 8, 8], "dtype": "float32"},
            content=bytes(1024),
            headers=headers,
        )
        assert latents.status_code == 200
        paths = {model["name"]: model["encode"] for model in httpx.get(f"{address}/v1/models").json()["models"]}
    assert paths == {"small": None, "taesdxl": "/v1/taesdxl/encode"}


def test_what_is_no_pair(halves, tmp_path: Path) -> None:
    (tmp_path / "taesd_decoder.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"no VAE for mine: saw \d+ tensors, among them taesd_encoder"):
        resolve(f"mine={tmp_path}/taesd_encoder.safetensors")
    save_half(halves["taesd3"][1], tmp_path / "taef1_encoder.safetensors")
    with pytest.raises(
        ModelUnavailable, match=r"no half of taef1: .*expected what taef1_decoder\.safetensors lacks"
    ):
        resolve(f"taef1={tmp_path}")
    # Without a layer that is not known the picture would be wrong.
    tensors = {key: tensor.contiguous() for key, tensor in halves["taesdxl"][1].state_dict().items()}
    save_file({**tensors, "3.glow.weight": torch.ones(8)}, tmp_path / "taesdxl_decoder.safetensors")
    with pytest.raises(ModelUnavailable, match=r"another architecture: saw decoder\.layers\.2\.glow\.weight"):
        Engine.load(resolve(f"taesdxl={tmp_path}"), CPU)


def test_pickled_pairs_say_how_to_convert_them(tmp_path: Path) -> None:
    (tmp_path / "taesd_decoder.pth").write_bytes(b"\x80\x02")
    with pytest.raises(
        ModelUnavailable, match=r"hybridge convert .*taesd_decoder\.pth .*taesd_decoder\.safetensors"
    ):
        resolve(f"taesd={tmp_path}")
    with pytest.raises(ModelUnavailable, match=r"taesd_decoder\.pth, which is pickled"):
        resolve(f"mine={tmp_path}:taesd")
