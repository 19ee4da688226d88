"""LATENTs of each model against a real server: decoded and encoded as ComfyUI's own VAE of that model would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from vae_classes.rows import ROWS

Node = Callable[..., tuple[Any, ...]]
MakeProfile = Callable[..., str]
Convert = Callable[[Any, torch.Tensor], torch.Tensor]


def as_it_is(_: Any, latents: torch.Tensor) -> torch.Tensor:
    return latents


def _by_statistics(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return vae.latents_mean.view(1, -1, 1, 1, 1), vae.latents_std.view(1, -1, 1, 1, 1)


def unnormalised(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    mean, std = _by_statistics(vae)
    return latents * std + mean


def normalised(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    mean, std = _by_statistics(vae)
    return (latents - mean) / std


def _of_frames(vae: Any, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each channel and frame, as `comfy/ldm/cosmos/vae.py` has them."""
    config = vae.config
    shape = (1, config.latent_channels, -1, 1, 1)
    mean, std = (torch.tensor(numbers).view(shape) for numbers in (config.latents_mean, config.latents_std))
    return mean[:, :, :frames], std[:, :, :frames]


def cosmos_unnormalised(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    mean, std = _of_frames(vae, latents.shape[2])
    return latents / 0.5 * std + mean


def cosmos_normalised(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    mean, std = _of_frames(vae, latents.shape[2])
    return (latents - mean) / std * 0.5


#: The model, the shape of a LATENT, and what ComfyUI's module does with it before it decodes and after it encodes.
FORMS: list[tuple[str, tuple[int, ...], Convert, Convert]] = [
    ("hunyuan-image", (2, 8, 4, 4), as_it_is, as_it_is),
    ("hunyuan-video", (1, 16, 2, 4, 4), as_it_is, as_it_is),
    ("hunyuan-video-1.5", (1, 8, 3, 2, 2), as_it_is, as_it_is),
    ("cogvideox-2b", (1, 16, 3, 4, 4), as_it_is, as_it_is),
    ("mochi", (2, 12, 2, 4, 4), as_it_is, as_it_is),
    ("cosmos", (1, 16, 2, 4, 4), cosmos_unnormalised, cosmos_normalised),
    ("ltx-2", (1, 8, 2, 2, 2), unnormalised, normalised),
]


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["float", "8-bit"])
@pytest.mark.parametrize(("name", "shape", "before", "after"), FORMS, ids=[form[0] for form in FORMS])
def test_a_latent_is_what_comfyui_s_own_vae_takes(
    node: Node,
    profile: MakeProfile,
    other_server: str,
    other_models: dict[str, Any],
    name: str,
    shape: tuple[int, ...],
    before: Convert,
    after: Convert,
    precision: str,
) -> None:
    module = other_models[name][0]
    (vae,) = node("HybridgeVAE", profile=profile(other_server), model=name, precision=precision)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    decoded = [module.decode(before(module, one), return_dict=False)[0] for one in latents.split(1)]
    pixels = ((torch.cat(decoded) + 1) / 2).clamp(0, 1).movedim(1, -1)
    found = vae.decode(latents)
    torch.testing.assert_close(found, pixels, atol=1e-4 if precision == "float" else 0.5 / 255 + 1e-4, rtol=0)

    frames = pixels[0] if pixels.ndim == 5 else pixels[:1]
    signed = (frames.movedim(-1, 0)[None] if pixels.ndim == 5 else frames.movedim(-1, 1)) * 2 - 1
    made = module.encode(signed, return_dict=False)[0]
    encoded = after(module, made.mode() if hasattr(made, "mode") else made)
    torch.testing.assert_close(vae.encode(frames), encoded, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_pictures_with_alpha(
    node: Node, profile: MakeProfile, other_server: str, other_models: dict[str, Any]
) -> None:
    """Qwen-Image 2.1's LATENT has no frame axis, and its pictures have four channels."""
    module = other_models["qwen-image-2.1"][0]
    for precision, most in (("float", 1e-4), ("8-bit", 0.5 / 255 + 1e-4)):
        (vae,) = node("HybridgeVAE", profile=profile(other_server), model="qwen-image-2.1", precision=precision)
        latents = torch.randn(2, vae.latent_channels, 2, 2, generator=torch.Generator().manual_seed(1))
        decoded = module.decode(latents[:, :, None]).sample[:, :, 0]
        expected = ((decoded + 1) / 2).clamp(0, 1).movedim(1, -1)
        assert expected.shape == (2, 32, 32, 4)
        torch.testing.assert_close(vae.decode(latents), expected, atol=most, rtol=0)
    assert (vae.latent_dim, vae.output_channels) == (2, 4)
    opaque = expected[..., :3]
    signed = torch.nn.functional.pad(opaque, (0, 1), value=1.0).movedim(-1, 1)[:, :, None] * 2 - 1
    encoded = module.encode(signed).latent_dist.mode()[:, :, 0]
    torch.testing.assert_close(vae.encode(opaque), encoded, atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["ltx-video", "flux2"])
def test_latents_that_comfyui_has_normalised_are_unscaled_by_the_server(
    node: Node, profile: MakeProfile, other_server: str, other_models: dict[str, Any], name: str
) -> None:
    """As diffusers' pipeline decodes them: ComfyUI's VAE of these models normalises inside."""
    module = other_models[name][0]
    row = next(row for row in ROWS if row.name == name)
    (vae,) = node("HybridgeVAE", profile=profile(other_server), model=name, precision="float")
    side = 2
    shape = (1, vae.latent_channels, *([3] if vae.latent_dim == 3 else []), side, side)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    packed = latents.flatten(2).transpose(1, 2)
    assert packed.shape == row.latents
    expected = ((row.decode(module, packed) + 1) / 2).clamp(0, 1).movedim(1, -1)
    found = vae.decode(latents)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    frames = found.shape[1] if vae.latent_dim == 3 else 1
    encoded = vae.encode(torch.rand(frames, *found.shape[-3:]))
    assert encoded.shape == latents.shape


@torch.inference_mode()
def test_a_decoder_that_is_told_of_noise(
    node: Node,
    profile: MakeProfile,
    other_server: str,
    other_models: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ComfyUI mixes noise into scaled latents of LTX-Video 0.9.1 and later, and names its decoder a timestep."""
    module = other_models["ltx-video-0.9.1"][0]
    (vae,) = node("HybridgeVAE", profile=profile(other_server), model="ltx-video-0.9.1", precision="float")
    latents, noise = (torch.randn(1, 8, 2, 2, 2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    mixed = unnormalised(module, noise * 0.025 + (1.0 - 0.025) * latents)
    expected = ((module.decode(mixed, torch.tensor([0.05])).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(vae.decode(latents), expected, atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "frames", "kept"),
    [("wan-2.1", 8, 5), ("ltx-2", 16, 9), ("ltx-2", 3, 1), ("hunyuan-video-1.5", 8, 5)],
)
def test_frames_that_comfyui_leaves_out(
    node: Node, profile: MakeProfile, other_server: str, name: str, frames: int, kept: int
) -> None:
    (vae,) = node("HybridgeVAE", profile=profile(other_server), model=name)
    pixels = torch.randint(0, 256, (frames, 32, 32, 3), generator=torch.Generator().manual_seed(1)) / 255
    assert torch.equal(vae.encode(pixels), vae.encode(pixels[:kept]))


def test_frames_as_a_picture_s_latents_are_refused_with_their_own_shape(
    node: Node, profile: MakeProfile, other_server: str
) -> None:
    (vae,) = node("HybridgeVAE", profile=profile(other_server), model="wan-2.1")
    with pytest.raises(RuntimeError, match=r"the shape \[1, 4, 8, 8\], but 'wan-2.1' decodes videos"):
        vae.decode(torch.zeros(1, 4, 8, 8))


def test_a_server_without_the_weights_yet_is_asked_to_load_them(
    pack: ModuleType, node: Node, profile: MakeProfile, other_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = sys.modules[f"{pack.__name__}.servers"].server_of(profile(other_server))
    known = server.model("ltx-2", "decode")
    vaes = sys.modules[f"{pack.__name__}.vae"]
    vae = vaes.RemoteVAE(server, {**known, "statistics": {}})
    latents = torch.randn(1, 8, 2, 2, 2)
    assert torch.equal(vae.decode(latents), vaes.RemoteVAE(server, known).decode(latents))
    monkeypatch.setattr(type(server), "model", lambda *_: {**known, "statistics": {}})
    with pytest.raises(RuntimeError, match="does not know the statistics of the latents of 'ltx-2'"):
        vaes.RemoteVAE(server, {**known, "statistics": {}})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("svd", "AutoencoderKLTemporalDecoder, which does not work here: ComfyUI has the frames of a video"),
        ("sana", "AutoencoderDC, which does not work here: ComfyUI has no such VAE"),
    ],
)
def test_other_classes_are_refused_by_name(
    node: Node, profile: MakeProfile, other_server: str, name: str, reason: str
) -> None:
    with pytest.raises(RuntimeError, match=reason):
        node("HybridgeVAE", profile=profile(other_server), model=name)
