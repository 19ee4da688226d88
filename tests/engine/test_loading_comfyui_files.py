"""Files of VAEs as ComfyUI has them in ``models/vae`` for Wan, Qwen-Image and FLUX.2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2, AutoencoderKLQwenImage, AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import save_file
from vae_files import Tensors, in_latent_diffusions_layout

from hybridge.engine import Engine, EngineOptions, resolve
from hybridge.errors import ModelUnavailable
from hybridge.models import CATALOGUE

CPU = EngineOptions(device="cpu", dtype="float32")

#: From diffusers' names to those of Wan's authors.
RENAMED = (
    *((r"\.norm1\.", ".residual.0."), (r"\.conv1\.", ".residual.2.")),
    *((r"\.norm2\.", ".residual.3."), (r"\.conv2\.", ".residual.6."), ("conv_shortcut", "shortcut")),
    *((r"^quant_conv", "conv1"), (r"^post_quant_conv", "conv2")),
    *((r"\.conv_in\.", ".conv1."), (r"\.norm_out\.", ".head.0."), (r"\.conv_out\.", ".head.2.")),
    *((r"mid_block\.resnets\.0", "middle.0"), (r"mid_block\.resnets\.1", "middle.2")),
    (r"mid_block\.attentions\.0", "middle.1"),
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"downsamples.\1.downsamples.\2"),
    (r"down_blocks\.(\d)\.downsampler\b", r"downsamples.\1.downsamples.2"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", r"upsamples.\1.upsamples.\2"),
    (r"up_blocks\.(\d)\.upsamplers?(?:\.0)?\b", r"upsamples.\1.upsamples.3"),
    ("down_blocks", "downsamples"),
)


def in_wans_layout(tensors: Tensors) -> Tensors:
    """As in Wan 2.2; Wan 2.1 counts the decoder's blocks through all sizes."""
    named = {}
    is_first = "encoder.down_blocks.0.conv1.weight" in tensors
    for name, tensor in tensors.items():
        for pattern, new in RENAMED:
            name = re.sub(pattern, new, name)
        if is_first:
            counted = re.compile(r"upsamples\.(\d)\.upsamples\.(\d)")
            name = counted.sub(lambda found: f"upsamples.{4 * int(found[1]) + int(found[2])}", name)
        named[name] = tensor
    return named


def small(kind: Any, **config: Any) -> Any:
    torch.manual_seed(0)
    return kind(**config).eval()


def wan(kind: Any = AutoencoderKLWan) -> Any:
    return small(kind, base_dim=8)


def wan_22() -> Any:
    return small(
        AutoencoderKLWan, **{**CATALOGUE["wan-2.2-5b"].architecture, "base_dim": 8, "decoder_base_dim": 16}
    )


def same_as(argument: str, module: Any, latents: torch.Tensor) -> Engine:
    engine = Engine.load(resolve(argument), CPU)
    with torch.no_grad():
        expected = module.decode(latents).sample
    decoded = engine.decode(latents)
    assert torch.allclose(decoded, expected.reshape(decoded.shape), atol=1e-4)  # pictures have no frames
    return engine


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("stem", "argument", "kind", "row"),
    [
        ("wan_2.1_vae", "mine={}", AutoencoderKLWan, "wan-2.1"),
        ("qwen_image_vae", "mine={}", AutoencoderKLQwenImage, "qwen-image"),
        ("renamed", "wan-2.1={}", AutoencoderKLWan, "wan-2.1"),
        ("renamed", "mine={}:qwen-image", AutoencoderKLQwenImage, "qwen-image"),
    ],
)
def test_wan_and_qwen_image(stem: str, argument: str, kind: Any, row: str, tmp_path: Path) -> None:
    vae, path = wan(kind), tmp_path / f"{stem}.safetensors"
    tensors = in_wans_layout(vae.state_dict())
    # The names are those of the authors: diffusers' own converter knows all of them.
    assert set(convert_wan_vae_to_diffusers(tensors)) == set(vae.state_dict())
    save_file(tensors, path)
    engine = same_as(argument.format(path), vae, noise(1, 16, 2, 3, 4)[:, :, : 1 if row == "qwen-image" else 2])
    assert engine.spec.class_name == kind.__name__
    assert row in engine.spec.title
    assert engine.spec.frames == CATALOGUE[row].frames


def test_wan_22(tmp_path: Path) -> None:
    vae, path = wan_22(), tmp_path / "any.safetensors"
    save_file(in_wans_layout(vae.state_dict()), path)
    engine = same_as(f"mine={path}", vae, noise(1, 48, 2, 3, 4))  # no other model has 48 channels
    assert engine.spec.spatial_factor == 16
    assert "wan-2.2-5b, told by its file" in engine.spec.title


def test_latents_are_scaled_as_the_rows_are(tmp_path: Path) -> None:
    save_file(in_wans_layout(wan_22().state_dict()), tmp_path / "wan2.2_vae.safetensors")
    engine = Engine.load(resolve(f"mine={tmp_path}/wan2.2_vae.safetensors"), CPU)
    config = engine.module.config
    assert len(config.latents_mean) == len(config.latents_std) == 48
    assert list(config.latents_std) == list(CATALOGUE["wan-2.2-5b"].architecture["latents_std"])


def test_flux2(tmp_path: Path) -> None:
    vae, path = small(AutoencoderKLFlux2, block_out_channels=(32, 32, 64, 64), layers_per_block=1), tmp_path / "x"
    vae.bn.running_mean.normal_()
    own = vae.state_dict()
    statistics = {name: tensor for name, tensor in own.items() if name.startswith("bn.")}
    layers = {name: tensor for name, tensor in own.items() if name not in statistics}
    for number, tensors in enumerate((own, in_latent_diffusions_layout(layers) | statistics)):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path)
        engine = same_as(f"mine={path}", vae, noise(1, 32, 4, 4))
        assert torch.equal(engine.module.bn.running_mean, vae.bn.running_mean)
        assert "flux2, told by its file" in engine.spec.title


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = in_wans_layout(wan().state_dict())
    save_file(tensors, path)
    with pytest.raises(
        ModelUnavailable, match=r"one of qwen-image, wan-2\.1. Try: mine=.*:qwen-image, or :wan-2\.1"
    ):
        resolve(f"mine={path}")
    with pytest.raises(ModelUnavailable, match="is not flux's"):
        resolve(f"mine={path}:flux")
    del tensors["decoder.head.2.bias"]
    save_file(tensors, path)
    with pytest.raises(ModelUnavailable, match=r"no decoder\.conv_out\.bias"):
        Engine.load(resolve(f"wan-2.1={path}"), CPU)
    save_file(tensors | {"decoder.head.2.bias": torch.zeros(3, dtype=torch.int8)}, path)
    with pytest.raises(ModelUnavailable, match=r"are no floats: saw decoder\.head\.2\.bias"):
        resolve(f"wan-2.1={path}")
