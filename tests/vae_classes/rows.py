"""One row for each class: a small model with random weights, and its pipeline's own decode and encode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import small_vaes
import torch
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from diffusers.pipelines.hunyuan_image.pipeline_hunyuanimage_refiner import HunyuanImageRefinerPipeline
from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline

#: Pixels on each side of most pictures here.
SIDE = 32

Pipeline = Callable[[Any, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Row:
    """A model of the catalogue in small.

    Attributes:
        name: The catalogue's name of the model.
        make: Makes the module.
        latents: The shape of a pipeline's latents.
        decode: The pipeline's own way from such latents to its VAE's output; (vae, latents) → pixels.
        encode: The pipeline's own way from pixels in [-1, 1] to latents; None where the model does not encode.
        pixels: The shape of pixels for ``encode``.
        query: Parameters of the request to decode.
        chunks: How many pieces the frames are delivered in.
    """

    name: str
    make: Callable[[], Any]
    latents: tuple[int, ...]
    decode: Pipeline
    encode: Pipeline | None = None
    pixels: tuple[int, ...] = (1, 3, SIDE, SIDE)
    query: dict[str, Any] = field(default_factory=dict)
    chunks: int = 1


def _per_channel(numbers: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(numbers).view(1, -1, 1, 1, 1).to(like)


def _decoded(vae: Any, z: torch.Tensor) -> torch.Tensor:
    sample: torch.Tensor = vae.decode(z, return_dict=False)[0]
    return sample


def _mode(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    mode: torch.Tensor = vae.encode(pixels).latent_dist.mode()
    return mode


# ----------------------------------------------------------- what pipelines do, each from its own code


def decode_by_factor(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """HunyuanVideo, HunyuanVideo 1.5, HunyuanImage, Sana"""
    return _decoded(vae, latents / vae.config.scaling_factor)


def encode_by_factor(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """HunyuanVideoImageToVideoPipeline.prepare_latents"""
    return _mode(vae, pixels) * vae.config.scaling_factor


def decode_by_inverse(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """EasyAnimatePipeline.__call__"""
    return _decoded(vae, 1 / vae.config.scaling_factor * latents)


def decode_wan(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """WanPipeline.__call__"""
    mean = _per_channel(vae.config.latents_mean, latents)
    std = 1.0 / _per_channel(vae.config.latents_std, latents)
    return _decoded(vae, latents / std + mean)


def encode_wan(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """WanVideoToVideoPipeline.prepare_latents, QwenImageImg2ImgPipeline._encode_vae_image"""
    z = _mode(vae, pixels)
    return (z - _per_channel(vae.config.latents_mean, z)) * (1.0 / _per_channel(vae.config.latents_std, z))


def decode_qwen(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """QwenImagePipeline.__call__"""
    return decode_wan(vae, QwenImagePipeline._unpack_latents(latents, SIDE, SIDE, 8))[:, :, 0]


def decode_qwen_21(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """QwenImage21Pipeline.__call__"""
    batch, _, channels = latents.shape
    z = latents.transpose(1, 2).reshape(batch, channels, 1, SIDE // 16, SIDE // 16)
    return _decoded(vae, z * _per_channel(vae.config.latents_std, z) + _per_channel(vae.config.latents_mean, z))[
        :, :, 0
    ]


def encode_qwen_21(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """QwenImage21Pipeline._encode_vae_image"""
    z = _mode(vae, pixels[:, :, None])
    return (z - _per_channel(vae.config.latents_mean, z)) / _per_channel(vae.config.latents_std, z)


def decode_ltx(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """LTXPipeline.__call__"""
    z = LTXPipeline._unpack_latents(latents, latents.shape[1] // 4, 2, 2)
    z = LTXPipeline._denormalize_latents(z, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    return _decoded(vae, z)


def decode_ltx_at_time(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """LTXPipeline.__call__ with decode_timestep 0.05, decode_noise_scale 0.025 and a generator of seed 3"""
    z = LTXPipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    scale = torch.tensor([0.025])[:, None, None, None, None]
    z = (1 - scale) * z + scale * noise
    sample: torch.Tensor = vae.decode(z, torch.tensor([0.05]), return_dict=False)[0]
    return sample


def encode_ltx(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """LTXImageToVideoPipeline.prepare_latents"""
    return LTXPipeline._normalize_latents(_mode(vae, pixels), vae.latents_mean, vae.latents_std)


def decode_cogvideox(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """CogVideoXPipeline.decode_latents"""
    return _decoded(vae, 1 / vae.config.scaling_factor * latents.permute(0, 2, 1, 3, 4))


def encode_cogvideox(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """CogVideoXVideoToVideoPipeline.prepare_latents"""
    return vae.config.scaling_factor * _mode(vae, pixels).permute(0, 2, 1, 3, 4)


def decode_mochi(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """MochiPipeline.__call__"""
    std, mean = (_per_channel(numbers, latents) for numbers in (vae.config.latents_std, vae.config.latents_mean))
    return _decoded(vae, latents * std / vae.config.scaling_factor + mean)


def encode_mochi(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """No pipeline encodes; the inverse."""
    z = _mode(vae, pixels)
    std, mean = (_per_channel(numbers, z) for numbers in (vae.config.latents_std, vae.config.latents_mean))
    return (z - mean) * vae.config.scaling_factor / std


def _flux2_statistics(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    return mean, torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)


def decode_flux2(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Flux2Pipeline.__call__"""
    ids = torch.cartesian_prod(torch.arange(1), torch.arange(2), torch.arange(2), torch.arange(1))[None]
    z = Flux2Pipeline._unpack_latents_with_ids(latents, ids)
    mean, std = _flux2_statistics(vae)
    return _decoded(vae, Flux2Pipeline._unpatchify_latents(z * std + mean))


def encode_flux2(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Flux2Pipeline._encode_vae_image, which the pipeline then packs: here not packed, nor patchified"""
    mean, std = _flux2_statistics(vae)
    return Flux2Pipeline._unpatchify_latents((Flux2Pipeline._patchify_latents(_mode(vae, pixels)) - mean) / std)


def decode_refiner(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """HunyuanImageRefinerPipeline.__call__"""
    z = HunyuanImageRefinerPipeline._restore_image_tokens_order(latents / vae.config.scaling_factor)
    return _decoded(vae, z).squeeze(2)


def encode_refiner(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """HunyuanImageRefinerPipeline._encode_vae_image, but the mode"""
    z = HunyuanImageRefinerPipeline._reorder_image_tokens(_mode(vae, pixels[:, :, None]))
    return z * vae.config.scaling_factor


def encode_sana(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """SanaSprintImg2ImgPipeline.prepare_latents"""
    return vae.encode(pixels).latent * vae.config.scaling_factor


def decode_svd(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """StableVideoDiffusionPipeline.decode_latents, all frames at once"""
    frames = latents.shape[1]
    flat = 1 / vae.config.scaling_factor * latents.flatten(0, 1)
    sample = vae.decode(flat, num_frames=frames).sample
    return sample.reshape(-1, frames, *sample.shape[1:]).permute(0, 2, 1, 3, 4).float()


def encode_svd(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """StableVideoDiffusionPipeline._encode_vae_image, which the pipeline does not scale, of all frames"""
    z = _mode(vae, pixels.transpose(1, 2).flatten(0, 1))
    return z.reshape(1, -1, *z.shape[1:]) * vae.config.scaling_factor


def decode_allegro(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """AllegroPipeline.decode_latents"""
    vae.enable_tiling()
    sample: torch.Tensor = vae.decode(1 / vae.config.scaling_factor * latents).sample
    return sample.permute(0, 2, 1, 3, 4)


def decode_cosmos(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """CosmosTextToWorldPipeline.__call__"""
    mean, std = (
        torch.tensor(numbers).view(1, vae.config.latent_channels, -1, 1, 1)[:, :, : latents.size(2)].to(latents)
        for numbers in (vae.config.latents_mean, vae.config.latents_std)
    )
    return _decoded(vae, latents * std / 0.5 + mean)


def encode_cosmos(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """CosmosVideoToWorldPipeline.prepare_latents"""
    z = vae.encode(pixels).latent_dist.mode()
    mean, std = (
        torch.tensor(numbers).view(1, vae.config.latent_channels, -1, 1, 1)[:, :, : z.size(2)].to(z)
        for numbers in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (z - mean) * 0.5 / std


def decode_kandinsky(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Kandinsky6SRPipeline.decode_latents"""
    video = _decoded(vae, latents / vae.config.scaling_factor)
    return ((video.float() + 1) * (128 / 127.5) - 1).clamp(-1, 1)


def encode_kandinsky(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Kandinsky6SRPipeline.encode_video"""
    return _mode(vae, (pixels + 1) * (127.5 / 128) - 1) * vae.config.scaling_factor


def encode_vidtok(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """No pipeline encodes; AutoencoderVidTok.forward"""
    latents: torch.Tensor = vae(pixels, sample_posterior=False, encoder_mode=True)
    return latents


def decode_playground(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """StableDiffusionXLPipeline.__call__"""
    mean, std = (
        torch.tensor(numbers).view(1, 4, 1, 1) for numbers in (vae.config.latents_mean, vae.config.latents_std)
    )
    return _decoded(vae, latents * std / vae.config.scaling_factor + mean)


ROWS = (
    Row("wan-2.1", small_vaes.wan, (1, 16, 3, 4, 4), decode_wan, encode_wan, (1, 3, 9, SIDE, SIDE), chunks=3),
    Row(
        "wan-2.2-5b",
        small_vaes.wan_22,
        (1, 48, 3, 2, 2),
        decode_wan,
        encode_wan,
        (1, 3, 5, SIDE, SIDE),
        chunks=3,
    ),
    Row(
        "qwen-image",
        small_vaes.qwen_image,
        (1, 4, 64),
        decode_qwen,
        lambda vae, pixels: encode_wan(vae, pixels[:, :, None]),
        query={"height": SIDE, "width": SIDE},
    ),
    Row(
        "hunyuan-video",
        small_vaes.hunyuan_video,
        (1, 16, 6, 4, 4),
        decode_by_factor,
        encode_by_factor,
        (1, 3, 9, SIDE, SIDE),
    ),
    Row(
        "hunyuan-video-1.5",
        small_vaes.hunyuan_video_15,
        (1, 8, 3, 2, 2),
        decode_by_factor,
        encode_by_factor,
        (1, 3, 5, SIDE, SIDE),
    ),
    Row(
        "ltx-video",
        small_vaes.ltx,
        (1, 3 * 2 * 2, 8),
        decode_ltx,
        encode_ltx,
        (1, 3, 9, SIDE, SIDE),
        {"height": SIDE, "width": SIDE},
    ),
    Row(
        "ltx-video-0.9.1",
        small_vaes.ltx_091,
        (1, 8, 2, 2, 2),
        decode_ltx_at_time,
        query={"decode_timestep": 0.05, "decode_noise_scale": 0.025, "seed": 3},
    ),
    Row(
        "ltx-2",
        small_vaes.ltx_2,
        (1, 8, 2, 2, 2),
        _decoded,
        _mode,
        (1, 3, 9, SIDE, SIDE),
    ),
    Row(
        "cogvideox-2b",
        small_vaes.cogvideox,
        (1, 5, 16, 4, 4),
        decode_cogvideox,
        encode_cogvideox,
        (1, 3, 9, SIDE, SIDE),
        chunks=2,
    ),
    Row(
        "mochi",
        small_vaes.mochi,
        (1, 12, 2, 4, 4),
        decode_mochi,
        encode_mochi,
        (1, 3, 7, SIDE, SIDE),
    ),
    Row(
        "flux2",
        lambda: small_vaes.flux2(decoder_block_out_channels=(4, 4, 4, 8)),
        (1, 4, 128),
        decode_flux2,
        encode_flux2,
        query={"height": SIDE, "width": SIDE},
    ),
    Row(
        "hunyuan-image",
        small_vaes.hunyuan_image,
        (2, 8, 4, 4),
        decode_by_factor,
        encode_by_factor,
    ),
    Row(
        "hunyuan-image-refiner",
        small_vaes.hunyuan_image_refiner,
        (1, 16, 1, 2, 2),
        decode_refiner,
        encode_refiner,
    ),
    Row(
        "sana",
        lambda: small_vaes.deep_compression(latent_channels=8),
        (1, 8, 16, 16),
        decode_by_factor,
        encode_sana,
    ),
    Row(
        "svd",
        small_vaes.stable_video,
        (1, 3, 4, 4, 4),
        decode_svd,
        encode_svd,
        (1, 3, 3, SIDE, SIDE),
    ),
    Row(
        "playground-v2.5",
        lambda: small_vaes.kl(
            scaling_factor=0.5,
            latents_mean=[-1.6574, 1.886, -1.383, 2.5155],
            latents_std=[8.4927, 5.9022, 6.5498, 5.2299],
        ),
        (1, 4, 4, 4),
        decode_playground,
    ),
    Row(
        "allegro",
        lambda: small_vaes.allegro(sample_size=128),
        (1, 4, 6, 16, 16),
        decode_allegro,
    ),
    Row(
        "easyanimate",
        small_vaes.magvit,
        (1, 16, 3, 4, 4),
        decode_by_inverse,
        encode_by_factor,
        (1, 3, 5, SIDE, SIDE),
        chunks=3,
    ),
    Row(
        "cosmos",
        small_vaes.cosmos,
        (1, 16, 2, 4, 4),
        decode_cosmos,
        encode_cosmos,
        (1, 3, 9, SIDE, SIDE),
    ),
    Row(
        "qwen-image-2.1",
        small_vaes.qwen_image_21,
        (1, 4, 64),
        decode_qwen_21,
        encode_qwen_21,
        (1, 4, SIDE, SIDE),
        query={"height": SIDE, "width": SIDE},
    ),
    Row(
        "kandinsky6-sr",
        small_vaes.kandinsky6_sr,
        (1, 8, 2, 2, 2),
        decode_kandinsky,
        encode_kandinsky,
        (1, 3, 5, SIDE, SIDE),
    ),
    Row(
        "kvae",
        small_vaes.kvae,
        (1, 16, 4, 4),
        _decoded,
        _mode,
    ),
    Row(
        "kvae-video",
        small_vaes.kvae_video,
        (1, 16, 3, 4, 4),
        _decoded,
        _mode,
        (1, 3, 9, SIDE, SIDE),
    ),
    Row(
        "vidtok",
        small_vaes.vidtok,
        (1, 4, 2, 4, 4),
        lambda vae, z: vae.decode(z),
        encode_vidtok,
        (1, 3, 5, SIDE, SIDE),
    ),
    Row(
        "asymmetric",
        small_vaes.asymmetric,
        (1, 4, 4, 4),
        decode_by_factor,
        encode_by_factor,
    ),
)
