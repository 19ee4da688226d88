"""Small models of random weights in ComfyUI's folders, and the servers' halves of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from small_vaes import hunyuan_image, hunyuan_video, hunyuan_video_15, kl_like, ltx, make, qwen_image, wan, wan_22
from text_pipelines import encoders, tokenizers
from text_servers import case_of, saved

from hybridge.models import ModelSpec, TextSpec
from hybridge.models.spec import spec_from_config

_DOWN = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}

#: Of the tiny SDXL's text encoders: a token's vector, and the pooled one.
_CONTEXT, _POOLED = 2 * encoders.WIDTH, encoders.WIDTH

#: The width of Wan's text encoder, which ComfyUI does not read from a file.
_WAN_CONTEXT = 4096


def spec_of(folder: Path, module: Any, name: str | None = None) -> ModelSpec:
    """The specification of a VAE that is saved there."""
    module.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    return spec_from_config(name or folder.name, str(folder), None, config)


def sd3_vae() -> Any:
    """Stable Diffusion 3's in its own size: ComfyUI reads no other from a file."""
    return make(
        diffusers.AutoencoderKL,
        **_DOWN,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


_LTX_095 = {
    "decoder_block_out_channels": (32, 64, 128),
    "layers_per_block": (4, 6, 6, 2, 2),
    "decoder_layers_per_block": (5, 5, 5, 5),
    "decoder_spatio_temporal_scaling": (True, True, True),
    "spatio_temporal_scaling": (True, True, True, True),
    "decoder_inject_noise": (False, False, False, False),
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "upsample_residual": (True, True, True),
    "upsample_factor": (2, 2, 2),
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}

#: VAEs with ComfyUI's numbers of layers, narrower; by their names in the catalogue.
VAES: dict[str, Callable[[], Any]] = {
    "wan-2.1": lambda: wan(base_dim=8, num_res_blocks=2),
    "wan-2.2-5b": lambda: wan_22(base_dim=16, decoder_base_dim=16, num_res_blocks=2),
    "qwen-image": lambda: qwen_image(base_dim=8, num_res_blocks=2),
    "hunyuan-video": lambda: hunyuan_video(
        block_out_channels=(32, 64, 128, 128), layers_per_block=2, norm_num_groups=32
    ),
    "hunyuan-video-1.5": lambda: hunyuan_video_15(
        latent_channels=32,
        block_out_channels=(32, 64, 64, 128, 128),
        layers_per_block=2,
        downsample_match_channel=True,
        upsample_match_channel=True,
    ),
    "hunyuan-image": lambda: hunyuan_image(
        latent_channels=64,
        block_out_channels=(32, 64, 64, 64, 128, 128),
        layers_per_block=2,
        spatial_compression_ratio=32,
        downsample_match_channel=True,
        upsample_match_channel=True,
    ),
    "ltx-video": lambda: ltx(
        latent_channels=128,
        block_out_channels=(16, 32, 64, 64),
        decoder_block_out_channels=(16, 32, 64, 64),
        layers_per_block=(4, 3, 3, 3, 4),
        decoder_layers_per_block=(4, 3, 3, 3, 4),
        patch_size=4,
    ),
    "ltx-video-0.9.1": lambda: ltx(
        latent_channels=128,
        block_out_channels=(16, 32, 64, 64),
        decoder_block_out_channels=(32, 64, 128),
        layers_per_block=(4, 3, 3, 3, 4),
        decoder_layers_per_block=(5, 6, 7, 8),
        decoder_spatio_temporal_scaling=(True, True, True),
        decoder_inject_noise=(False, False, False, False),
        upsample_residual=(True, True, True),
        upsample_factor=(2, 2, 2),
        timestep_conditioning=True,
        patch_size=4,
    ),
    "ltx-video-0.9.5": lambda: ltx(
        latent_channels=128,
        block_out_channels=(16, 32, 64, 128, 256),
        down_block_types=("LTXVideo095DownBlock3D",) * 4,
        timestep_conditioning=True,
        patch_size=4,
        **_LTX_095,
    ),
    "ltx-2": lambda: ltx(
        diffusers.AutoencoderKLLTX2Video,
        latent_channels=128,
        block_out_channels=(128, 128, 128, 128),
        decoder_causal=False,
        patch_size=4,
        **_LTX_095,
    ),
    "cosmos": lambda: make(
        diffusers.AutoencoderKLCosmos,
        encoder_block_out_channels=(8, 16, 32, 32),
        decode_block_out_channels=(16, 32, 32, 32),
    ),
    "mochi": lambda: make(
        diffusers.AutoencoderKLMochi,
        encoder_block_out_channels=(32, 64, 96, 128),
        decoder_block_out_channels=(32, 64, 96, 128),
    ),
    "flux2": lambda: make(
        diffusers.AutoencoderKLFlux2,
        block_out_channels=(32, 64, 128, 128),
        decoder_block_out_channels=(32, 64, 128, 128),
        latent_channels=32,
        **_DOWN,
    ),
}


def _sd3(component: Any, **config: Any) -> Any:
    """A part of Stable Diffusion 3 with two layers, which reads the text of a tiny SDXL."""
    shape = {
        "sample_size": 32,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 64,
        "num_attention_heads": 2,
        "caption_projection_dim": 128,
        "joint_attention_dim": _CONTEXT,
        "pooled_projection_dim": _POOLED,
        "pos_embed_max_size": 64,
    }
    made = make(component, **{**shape, **config})
    for weight in made.parameters():
        if not weight.any():
            weight.normal_(std=0.1)
    return made


def fill_folders(base: Path) -> None:
    """Writes the models of the prompts and of the example workflows, and a picture."""
    models = base / "models"

    def write(path: str, tensors: dict[str, torch.Tensor]) -> None:
        (models / path).parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, models / path)

    torch.manual_seed(0)
    denoiser = _sd3(diffusers.SD3Transformer2DModel).state_dict()
    for name in ("sd3", "sd_xl_base_1.0_unet"):
        write(f"diffusion_models/{name}.safetensors", denoiser)
    write("controlnet/sd3.safetensors", _sd3(diffusers.SD3ControlNetModel).state_dict())
    inpaint = _sd3(diffusers.SD3ControlNetModel, extra_conditioning_channels=1)
    write("controlnet/sd3_inpaint.safetensors", inpaint.state_dict())
    write("vae/sd3.safetensors", sd3_vae().state_dict())
    (base / "input").mkdir(exist_ok=True)
    levels = np.random.default_rng(0).integers(0, 256, (64, 96, 4), dtype=np.uint8)
    levels[..., 3] = 255
    levels[16:48, 32:64, 3] = 0  # the mask
    Image.fromarray(levels).save(base / "input" / "example.png")
    (base / "input" / "bad.safetensors").write_bytes(b"not a file of tensors")


def _wan_text() -> dict[str, Any]:
    tokenizer = tokenizers.t5()
    config = transformers.UMT5Config(
        vocab_size=len(tokenizer), d_model=_WAN_CONTEXT, d_ff=64, d_kv=8, num_heads=4, num_layers=1
    )
    config.feed_forward_proj = "gated-gelu"
    return {"tokenizer": tokenizer, "text_encoder": encoders.make("UMT5EncoderModel", config)}


def served(folder: Path) -> tuple[list[ModelSpec], list[TextSpec]]:
    """The VAEs and the text encoders of the server."""
    vaes = [
        spec_of(folder / "sd3", sd3_vae()),
        spec_of(folder / "sdxl", kl_like(0.13025)),
        spec_of(folder / "wan-2.1", wan(base_dim=8)),
    ]
    cases = {
        "sdxl": case_of("StableDiffusionXLPipeline"),
        "wan": replace(case_of("WanPipeline"), text=_wan_text),
    }
    texts = [
        TextSpec(name, saved(case, folder / f"text_{name}").source, case.class_name) for name, case in cases.items()
    ]
    return vaes, texts
