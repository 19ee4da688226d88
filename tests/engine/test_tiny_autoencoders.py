"""TAESD's newer architectures and TAEHV, from files as their author publishes them.

The modules here are written from the published architecture, all frames at once, and share no code with the
engine's.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import av
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from hybridge import Client
from hybridge.engine import Engine, EngineOptions, loading, resolve
from hybridge.errors import ModelUnavailable, RequestError, Stopped
from hybridge.models import CATALOGUE
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

CPU = EngineOptions(device="cpu", dtype="float32")
WIDTH = 8


def conv(before: int, after: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, **options)


class Clamp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * torch.tanh(x / 3)


class Block(nn.Module):
    """A picture's block, with the norm of TAEF2 or without."""

    def __init__(self, width: int, pools: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))
        if pools:
            squeeze = nn.Conv2d(4 * width, width, 1, bias=False)
            self.pool = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False), nn.GroupNorm(4, 4 * width), nn.ReLU(), squeeze
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


def up(before: int, after: int) -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2), conv(before, after, bias=False)]


def taef2() -> tuple[nn.Sequential, nn.Sequential]:
    encoder: list[nn.Module] = [conv(3, WIDTH), Block(WIDTH)]
    decoder: list[nn.Module] = [Clamp(), conv(32, WIDTH), nn.ReLU()]
    for step in range(3):
        encoder += [conv(WIDTH, WIDTH, stride=2, bias=False), *(Block(WIDTH, pools=step == 2) for _ in range(3))]
        decoder += [*(Block(WIDTH, pools=step == 0) for _ in range(3)), *up(WIDTH, WIDTH)]
    return nn.Sequential(*encoder, conv(WIDTH, 32)), nn.Sequential(*decoder, Block(WIDTH), conv(WIDTH, 3))


def taesana() -> tuple[nn.Sequential, nn.Sequential]:
    half = WIDTH // 2
    start = [conv(3, half, stride=2), nn.ReLU(), conv(half, WIDTH, stride=2), nn.ReLU(), Block(WIDTH)]
    encoder: list[nn.Module] = [*start]
    for _ in range(3):
        encoder += [conv(WIDTH, WIDTH, stride=2, bias=False), *(Block(WIDTH) for _ in range(3))]
    decoder: list[nn.Module] = [Clamp(), conv(32, 4 * WIDTH), nn.ReLU()]
    for before, after in ((4, 2), (2, 1), (1, 1), (1, 1), (1, 1)):
        decoder += [*(Block(before * WIDTH) for _ in range(3)), *up(before * WIDTH, after * WIDTH)]
    return nn.Sequential(*encoder, conv(WIDTH, 32)), nn.Sequential(*decoder, Block(WIDTH), conv(WIDTH, 3))


def taeqi() -> tuple[nn.Sequential, nn.Sequential]:
    encoder: list[nn.Module] = [nn.PixelUnshuffle(2), conv(16, WIDTH), nn.ReLU(), Block(WIDTH)]
    for before, after in ((1, 1), (1, 2), (2, 4)):
        encoder += [conv(before * WIDTH, after * WIDTH, stride=2, bias=False)]
        encoder += [Block(after * WIDTH) for _ in range(3)]
    decoder: list[nn.Module] = [Clamp(), conv(64, 4 * WIDTH), nn.ReLU()]
    for before, after in ((4, 2), (2, 1), (1, 1)):
        decoder += [*(Block(before * WIDTH) for _ in range(3)), *up(before * WIDTH, after * WIDTH)]
    decoder += [Block(WIDTH), conv(WIDTH, 16), nn.PixelShuffle(2)]
    return nn.Sequential(*encoder, conv(4 * WIDTH, 64)), nn.Sequential(*decoder)


class Remembers(nn.Module):
    """A block of TAEHV, on frames (T, C, H, W): each with the one before, the first with zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [conv(2 * width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]
        return F.relu(self.conv(torch.cat([x, before], 1)) + x)


class Pool(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride, self.conv = stride, nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.reshape(-1, self.stride * x.shape[1], *x.shape[2:]))


class Grow(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).reshape(-1, *x.shape[1:])


class Taehv(nn.Module):
    def __init__(
        self, channels: int, patch: int, pools: tuple[int, ...] = (2, 2, 1), grows: tuple[int, ...] = (1, 2, 2)
    ) -> None:
        super().__init__()
        self.patch, self.joined, self.grown = patch, math.prod(pools), math.prod(grows)
        widths, pixels = (32, 16, WIDTH, WIDTH), 3 * patch**2
        layers: list[nn.Module] = [conv(pixels, WIDTH), nn.ReLU()]
        for stride in pools:
            remembering = [Remembers(WIDTH) for _ in range(3)]
            layers += [Pool(WIDTH, stride), conv(WIDTH, WIDTH, stride=2, bias=False), *remembering]
        self.encoder = nn.Sequential(*layers, conv(WIDTH, channels))
        layers = [Clamp(), conv(channels, widths[0]), nn.ReLU()]
        for before, after, stride in zip(widths, widths[1:], grows, strict=False):
            remembering = [Remembers(before) for _ in range(3)]
            grown = [nn.Upsample(scale_factor=2), Grow(before, stride), conv(before, after, bias=False)]
            layers += [*remembering, *grown]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), conv(WIDTH, pixels))

    def decode(self, latents: torch.Tensor, *, all_frames: bool = False) -> torch.Tensor:
        """(T, C, h, w) → (F, 3, H, W) in [0, 1]"""
        frames = F.pixel_shuffle(self.decoder(latents), self.patch).clamp(0, 1)
        return frames if all_frames else frames[self.grown - 1 :]

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """(F, 3, H, W) in [0, 1] → (T, C, h, w)"""
        lacking = -len(frames) % self.joined
        return self.encoder(F.pixel_unshuffle(torch.cat([frames, *[frames[-1:]] * lacking]), self.patch))


def contrasty(module: nn.Module) -> nn.Module:
    """Enlarge the weights: with torch's own, what a block sees of the past would be lost in rounding."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data.mul_(2)
    return module.eval()


def save(module: nn.Module, path: Path) -> None:
    save_file({key: tensor.contiguous() for key, tensor in module.state_dict().items()}, path)


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    module = {
        "taehv": lambda: Taehv(16, 1),
        "taew2_1": lambda: Taehv(16, 1),
        "taew2_2": lambda: Taehv(48, 2),
        "taehv1_5": lambda: Taehv(32, 2),
        "taecvx": lambda: Taehv(16, 1),
    }[kind]()
    return contrasty(module)


@pytest.mark.parametrize(("stem", "build", "parent"), [("taef2", taef2, "flux2"), ("taesana", taesana, "sana")])
@torch.no_grad()
def test_pictures(tmp_path: Path, stem: str, build, parent: str) -> None:
    torch.manual_seed(1)
    encoder, decoder = (contrasty(half) for half in build())
    save(encoder, tmp_path / f"{stem}_encoder.safetensors")
    save(decoder, tmp_path / f"{stem}_decoder.safetensors")
    spec = resolve(f"small={tmp_path}")
    row = CATALOGUE[parent]
    assert (spec.kind, spec.parent, spec.pack) == ("tiny", parent, row.pack)
    assert "told by its file" in spec.title
    engine, latents = Engine.load(spec, CPU), torch.randn(1, 32, 4, 2)
    found = engine.decode(latents, sent=spec.normalisation)
    assert torch.allclose(found, decoder(latents) * 2 - 1, atol=1e-4)
    image = torch.rand(1, 3, 4 * spec.spatial_factor, 2 * spec.spatial_factor)
    encoded = engine.encode(image, wanted=spec.normalisation, value_range="unit")
    assert torch.allclose(encoded, encoder(image), atol=1e-4)
    if parent == "flux2":  # its statistics are in the weights of FLUX.2's own VAE
        with pytest.raises(RequestError, match="do_scaling=True"):
            engine.decode(latents)
        with pytest.raises(RequestError, match="weights of flux2"):
            engine.encode(image, value_range="unit")


@torch.no_grad()
def test_pictures_with_alpha(tmp_path: Path) -> None:
    torch.manual_seed(1)
    encoder, decoder = (contrasty(half) for half in taeqi())
    save(encoder, tmp_path / "taeqi2_1_encoder.safetensors")
    save(decoder, tmp_path / "taeqi2_1_decoder.safetensors")
    spec = resolve(f"small={tmp_path}")
    assert (spec.kind, spec.parent, spec.pack, spec.spatial_factor) == ("tiny", "qwen-image-2.1", 1, 16)
    engine, latents = Engine.load(spec, CPU), torch.randn(1, 64, 1, 4, 2)
    found = engine.decode(latents, sent=spec.normalisation)
    assert found.shape == (1, 4, 64, 32)
    assert torch.allclose(found, decoder(latents[:, :, 0]) * 2 - 1, atol=1e-4)
    packed = latents.flatten(2).transpose(1, 2)  # as the pipeline has them
    assert torch.equal(engine.decode(packed, sent=spec.normalisation, height=64, width=32), found)
    image = torch.rand(1, 3, 64, 32)
    opaque = torch.cat([image, torch.ones(1, 1, 64, 32)], 1)
    encoded = engine.encode(image, wanted=spec.normalisation, value_range="unit")
    assert torch.allclose(encoded[:, :, 0], encoder(opaque), atol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize(
    ("stem", "parent"),
    [
        ("taehv", "hunyuan-video"),
        ("taew2_1", "wan-2.1"),
        ("taew2_2", "wan-2.2-5b"),
        ("taehv1_5", "hunyuan-video-1.5"),
    ],
)
@torch.no_grad()
def test_videos(tmp_path: Path, stem: str, parent: str, frames: int) -> None:
    module = made(stem)
    save(module, tmp_path / f"{stem}.safetensors")
    spec = resolve(f"small={tmp_path / stem}.safetensors")
    assert (spec.kind, spec.parent, spec.axes) == ("tiny", parent, "BCTHW")
    assert spec.frames.frames_out(frames) == 4 * frames - 3
    engine, latents = Engine.load(spec, CPU), torch.randn(1, spec.latent_channels, frames, 3, 2)
    wanted = module.decode(latents[0].transpose(0, 1))
    found = engine.decode(latents, sent=spec.normalisation)
    assert found.shape == (1, 3, 4 * frames - 3, 3 * spec.spatial_factor, 2 * spec.spatial_factor)
    assert torch.allclose(found[0].transpose(0, 1) / 2 + 0.5, wanted, atol=1e-4)

    seen: list[torch.Tensor] = []
    engine.decode(latents, sent=spec.normalisation, on_frames=seen.append)
    assert len(seen) == frames  # those of one latent frame at a time
    streamed = torch.cat(seen).permute(0, 3, 1, 2) / 255
    assert (streamed - wanted).abs().max() <= 0.5 / 255 + 1e-4

    film = torch.rand(1, 3, 4 * frames - 2, 2 * spec.spatial_factor, 2 * spec.spatial_factor)
    encoded = engine.encode(film, wanted=spec.normalisation, value_range="unit")
    assert torch.allclose(encoded[0].transpose(0, 1), module.encode(film[0].transpose(0, 1)), atol=1e-4)


@torch.no_grad()
def test_vae_space_is_that_of_the_parent(tmp_path: Path) -> None:
    for name, parent in (("taew2_1", "wan-2.1"), ("taew2_2", "wan-2.2-5b")):
        save(made(name), tmp_path / f"{name}.safetensors")
        engine = Engine.load(resolve(f"small={tmp_path}/{name}.safetensors"), CPU)
        config = loading.config_for_planning(CATALOGUE[parent])
        mean, std = (torch.tensor(config[key]).reshape(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
        latents = torch.randn(1, len(config["latents_mean"]), 2, 2, 2)
        scaled = engine.decode(latents, sent=engine.spec.normalisation)
        assert torch.allclose(engine.decode(latents * std + mean), scaled, atol=1e-4)
    for half, module in zip(("encoder", "decoder"), taef2(), strict=True):
        save(module, tmp_path / f"taef2_{half}.safetensors")
    engine = Engine.load(resolve(f"small={tmp_path}"), CPU)
    with pytest.raises(RequestError, match=r"statistics are in the weights of flux2"):
        engine.decode(torch.zeros(1, 32, 2, 2))


@torch.no_grad()
def test_a_file_whose_parent_is_asked_for(tmp_path: Path) -> None:
    module, path = made("taecvx"), tmp_path / "taecvx.safetensors"
    save(module, path)
    with pytest.raises(ModelUnavailable, match=r"(?s)scaling of mine is not known.*cogvideox-2b, cogvideox-5b"):
        resolve(f"mine={path}")
    spec = resolve(f"mine={path}:cogvideox-5b")
    assert (spec.parent, spec.axes, spec.frames.frames_out(2), spec.frames.frames_out(3)) == (
        "cogvideox-5b", "BTCHW", 8, 9
    )  # fmt: skip
    engine = Engine.load(spec, CPU)
    for frames in (2, 3):
        latents = torch.randn(1, frames, 16, 2, 2)
        wanted = module.decode(latents[0], all_frames=frames % 2 == 0)
        found = engine.decode(latents, sent=spec.normalisation)[0].transpose(0, 1)
        assert torch.allclose(found / 2 + 0.5, wanted, atol=1e-4)
    pictures = resolve(f"mine={path}:qwen-image")
    assert (pictures.is_video, pictures.axes, pictures.pack) == (False, "BCTHW", 2)
    found = Engine.load(pictures, CPU).decode(torch.zeros(1, 16, 1, 2, 2), sent=pictures.normalisation)
    assert found.shape == (1, 3, 16, 16)


@torch.no_grad()
def test_a_film_from_a_server(tmp_path: Path) -> None:
    module = made("taew2_1")
    save(module, tmp_path / "taew2_1.safetensors")
    spec = resolve(f"small={tmp_path}/taew2_1.safetensors")
    latents = torch.randn(1, 16, 3, 4, 4)
    with running(create_app(LocalBackend({}, cold=[spec], options=CPU))) as address, Client(address) as client:
        film = client.decode_video(latents, model="small", do_scaling=True)
        pixels = client.decode(latents, model="small", do_scaling=True, output="pixels")
    with av.open(io.BytesIO(film)) as opened:
        assert [frame.to_ndarray().shape for frame in opened.decode(video=0)] == [(48, 32)] * 9  # YUV 4:2:0
    wanted = module.decode(latents[0].transpose(0, 1)).permute(0, 2, 3, 1) * 255
    assert (torch.as_tensor(pixels).float() - wanted).abs().max() <= 0.51


def test_what_is_refused(tmp_path: Path) -> None:
    save(Taehv(128, 4, (2, 2, 2), (2, 2, 2)), tmp_path / "taeltx_2.safetensors")  # LTX-2's latents are not scaled
    with pytest.raises(ModelUnavailable, match="this VAE is not ltx-2's"):
        resolve(f"mine={tmp_path}/taeltx_2.safetensors:ltx-2")
    module = made("taehv")
    tensors = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
    del tensors["decoder.15.conv.0.weight"]
    save_file(tensors, tmp_path / "taehv.safetensors")
    with pytest.raises(ModelUnavailable, match=r"incomplete: saw no decoder\.15\.conv\.0\.weight"):
        Engine.load(resolve(f"mine={tmp_path}/taehv.safetensors"), CPU)
    save(module, tmp_path / "whole.safetensors")
    engine = Engine.load(resolve(f"mine={tmp_path}/whole.safetensors:wan-2.1"), CPU)
    stops: list[int] = []
    with pytest.raises(Stopped):
        engine.decode(
            torch.zeros(1, 16, 3, 2, 2),
            sent=engine.spec.normalisation,
            should_stop=lambda: stops.append(1) or len(stops) == 2,
        )
    assert len(stops) == 2
