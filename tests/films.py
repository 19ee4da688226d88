"""Small video VAEs with random weights, and their right answer in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLAllegro,
    AutoencoderKLCogVideoX,
    AutoencoderKLCosmos,
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLKVAE,
    AutoencoderKLKVAEVideo,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLMagvit,
    AutoencoderKLMochi,
    AutoencoderKLQwenImage,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
)
from diffusers.models.autoencoders import autoencoder_kl_mochi, autoencoder_kl_qwenimage, autoencoder_kl_wan
from torch import nn


def small_wan(seed: int = 0, kind: type = AutoencoderKLWan, **config: Any) -> Any:
    """Wan 2.1's blocks, f8t4, with 8 to 32 channels instead of 96 to 384."""
    torch.manual_seed(seed)
    config = {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1} | config
    return with_random_norms(kind(**config).eval())


def small_qwen(seed: int = 0, **config: Any) -> Any:
    return small_wan(seed, AutoencoderKLQwenImage, **config)


def small_hunyuan(seed: int = 0, **config: Any) -> Any:
    """HunyuanVideo's blocks, f8t4, with 8 and 16 channels instead of 128 to 512; all frames at once."""
    torch.manual_seed(seed)
    config = {"layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4} | config
    module = AutoencoderKLHunyuanVideo(**{"block_out_channels": (8, 8, 16, 16)} | config).eval()
    module.use_framewise_decoding = module.use_framewise_encoding = False
    return with_random_norms(module)


def small_hunyuan_15(seed: int = 0, **config: Any) -> Any:
    """HunyuanVideo 1.5's blocks, f8t4 instead of f16t4, with 8 to 32 channels instead of 128 to 1024."""
    torch.manual_seed(seed)
    config = {"layers_per_block": 1, "latent_channels": 4, "spatial_compression_ratio": 8} | config
    module = AutoencoderKLHunyuanVideo15(**{"block_out_channels": (8, 16, 16, 32)} | config)
    return with_random_norms(module.eval())


def small_hunyuan_image(seed: int = 0) -> Any:
    """HunyuanImage's blocks, f4 instead of f32, with 32 and 64 channels instead of 128 to 1024."""
    torch.manual_seed(seed)
    sizes = {"block_out_channels": (32, 32, 64), "spatial_compression_ratio": 4, "sample_size": 64}
    counts = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 1}
    return with_random_norms(AutoencoderKLHunyuanImage(**sizes | counts).eval())


def small_kvae(seed: int = 0) -> Any:
    """KVAE's blocks, f4 instead of f8, with 32 and 64 channels: its norms have 32 groups."""
    torch.manual_seed(seed)
    sizes = {"channels": 32, "ch_mult": (1, 1, 2), "z_channels": 4}
    return with_random_norms(AutoencoderKLKVAE(num_enc_blocks=1, num_dec_blocks=1, **sizes).eval())


def small_kvae_video(seed: int = 0) -> Any:
    """The blocks of KVAE for videos, f4t4 instead of f8t4, with 32 channels: its norms have 32 groups."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"ch": 32, "ch_mult": (1, 1, 1), "z_channels": 4, "num_res_blocks": 1}
    return with_random_norms(AutoencoderKLKVAEVideo(**sizes).eval())


def small_deep_compression(seed: int = 0, **config: Any) -> Any:
    """Sana's blocks, f4 instead of f32, with 8 and 16 channels instead of 128 to 1024."""
    torch.manual_seed(seed)
    blocks = {"block_types": ("ResBlock", *("EfficientViTBlock",) * 2), "qkv_multiscales": ((), (5,), (5,))}
    both: dict[str, Any] = blocks | {"block_out_channels": (8, 16, 16), "layers_per_block": (1, 1, 1)}
    halves = {f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in both.items()}
    sizes = {"latent_channels": 4, "attention_head_dim": 4}
    resampling = {"downsample_block_type": "conv", "upsample_block_type": "interpolate"}
    return with_random_norms(AutoencoderDC(**halves | sizes | resampling | config).eval())


def small_allegro(seed: int = 0) -> Any:
    """Allegro's blocks, f2t4 instead of f8t4, with 8 channels, and tiles of 8×8×10 pixels that share a few."""
    torch.manual_seed(seed)
    blocks = {"down_block_types": ("AllegroDownBlock3D",) * 2, "up_block_types": ("AllegroUpBlock3D",) * 2}
    in_time = {"temporal_downsample_blocks": (True, True), "temporal_upsample_blocks": (True, True)}
    sizes: dict[str, Any] = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    module = AutoencoderKLAllegro(**blocks | in_time | sizes).eval()
    module.kernel, module.stride = (8, 8, 10), (4, 4, 6)
    module.use_tiling = True
    return with_random_norms(module)


def small_ltx(seed: int = 0, kind: type = AutoencoderKLLTXVideo, **config: Any) -> Any:
    """LTX-Video 0.9.0's blocks, f8t4 instead of f32t8, whose decoder looks ahead, with 8 and 16 channels."""
    torch.manual_seed(seed)
    layers = {"layers_per_block": (1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1)}
    scaling = {"spatio_temporal_scaling": (True, True, False), "down_block_types": ("LTXVideoDownBlock3D",) * 3}
    sizes = {"block_out_channels": (8, 8, 16), "decoder_block_out_channels": (8, 16, 16), "latent_channels": 4}
    config = layers | scaling | sizes | {"decoder_spatio_temporal_scaling": (True, True, False)} | config
    return with_random_norms(kind(**{"patch_size": 2} | config).eval())


def small_ltx_2(seed: int = 0) -> Any:
    """LTX-2's blocks, which reflect rows and columns, take neighbours as channels and add them."""
    steps = {"downsample_type": ("spatial", "temporal", "spatiotemporal"), "upsample_factor": (2, 2)}
    scaling = {"spatio_temporal_scaling": (True, True, True), "decoder_spatio_temporal_scaling": (True, True)}
    sizes = {"block_out_channels": (8, 16, 32), "decoder_block_out_channels": (16, 32)}
    layers = {"decoder_layers_per_block": (1, 1, 1), "upsample_residual": (True, True), "decoder_causal": False}
    blocks = {"down_block_types": ("LTX2VideoDownBlock3D",) * 3, "decoder_inject_noise": (False,) * 3}
    types = {"upsample_type": ("spatiotemporal",) * 2}
    return small_ltx(seed, AutoencoderKLLTX2Video, **steps | scaling | sizes | layers | blocks | types)


def small_ltx_timed(seed: int = 0, kind: type = AutoencoderKLLTXVideo) -> Any:
    """LTX-Video 0.9.1's decoder, which is conditioned on a timestep and adds noise after some blocks."""
    sizes = {"decoder_block_out_channels": (16, 32), "upsample_factor": (2, 2), "upsample_residual": (True, True)}
    layers = {"decoder_layers_per_block": (1, 1, 1), "decoder_spatio_temporal_scaling": (True, True)}
    noisy = {"timestep_conditioning": True, "decoder_inject_noise": (True, False, True)}
    return small_ltx(seed, kind, **sizes | layers | noisy)


def small_magvit(seed: int = 0, **config: Any) -> Any:
    """EasyAnimate's blocks, f8t4, whose norms have the statistics of a frame."""
    torch.manual_seed(seed)
    config = {"block_out_channels": (8, 8, 8, 16), "latent_channels": 4, "norm_num_groups": 4} | config
    return with_random_norms(AutoencoderKLMagvit(**{"layers_per_block": 1} | config).eval())


def small_cogvideox(seed: int = 0, **config: Any) -> Any:
    """CogVideoX's blocks, f8t4, whose norms have the statistics of two latent frames."""
    torch.manual_seed(seed)
    config = {"block_out_channels": (8, 8, 8, 16), "latent_channels": 4, "norm_num_groups": 4} | config
    return with_random_norms(AutoencoderKLCogVideoX(**{"layers_per_block": 1} | config).eval())


def small_cosmos(seed: int = 0, **config: Any) -> Any:
    """Cosmos 1.0's blocks, f8t4 with patches of 2 instead of f8t8 with those of 4."""
    torch.manual_seed(seed)
    sizes = {"encoder_block_out_channels": (8, 8, 8, 16), "decode_block_out_channels": (8, 8, 8, 16)}
    steps = {"patch_size": 2, "temporal_compression_ratio": 4, "attention_resolutions": (8,), "resolution": 64}
    config = sizes | steps | {"num_layers": 1, "latent_channels": 4} | config
    return with_random_norms(AutoencoderKLCosmos(**config).eval())


def small_mochi(seed: int = 0, **config: Any) -> Any:
    """Mochi's blocks, f8t6, with 32 and 64 channels instead of 64 to 768: a group of its norms has one or two."""
    torch.manual_seed(seed)
    sizes = {"encoder_block_out_channels": (32, 32, 32, 64), "decoder_block_out_channels": (32, 32, 32, 64)}
    layers = {"layers_per_block": (1, 1, 1, 1, 1), "latent_channels": 4}
    return with_random_norms(AutoencoderKLMochi(**sizes | layers | config).eval())


def small_svd(seed: int = 0) -> Any:
    """Stable Video Diffusion's blocks, f8, with 32 channels instead of 128 to 512: its norms have 32 groups."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"block_out_channels": (32,) * 4, "down_block_types": ("DownEncoderBlock2D",) * 4}
    module = with_random_norms(AutoencoderKLTemporalDecoder(**sizes).eval())
    for name, parameter in module.named_parameters():
        if name.endswith("mix_factor"):
            nn.init.normal_(parameter)
    return module


def small_wan_22(seed: int = 0, **config: Any) -> Any:
    """Wan 2.2's blocks, f8t4 instead of f16t4."""
    patches = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
    sizes = {"dim_mult": [1, 2, 2], "temperal_downsample": [True, True], "decoder_base_dim": 16}
    return small_wan(seed, **patches | sizes | config)


def with_random_norms(module: Any) -> Any:
    """Norms that have been trained, and noise: at first their factors are all one or zero."""
    for name, parameter in module.named_parameters():
        if name.endswith("gamma") or "per_channel" in name or ("norm" in name and parameter.ndim == 1):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return module


def to(module: Any, dtype: torch.dtype) -> Any:
    return nn.Module.to(module, dtype)  # diffusers' own warns


@torch.no_grad()
def plainly(module: Any, task: str, source: torch.Tensor) -> torch.Tensor:
    if isinstance(module, AutoencoderKLTemporalDecoder):
        return frames_in_batch(module, task, source)
    if isinstance(module, AutoencoderDC):
        return module.decode(source).sample if task == "decode" else module.encode(source).latent
    if isinstance(module, AutoencoderKLAllegro) and task == "decode":
        return module.decode(source).sample.transpose(1, 2)
    if task == "decode":
        return module.decode(source, *beside(module, task, source).values()).sample
    return module.encode(source).latent_dist.parameters


def frames_in_batch(module: Any, task: str, source: torch.Tensor) -> torch.Tensor:
    """As :func:`plainly`, for a class that takes frames as items of a batch."""
    batch, _, frames = source.shape[:3]
    items = source.transpose(1, 2).flatten(0, 1)
    if task == "decode":
        made = module.decode(items, num_frames=frames).sample
    else:
        made = module.encode(items).latent_dist.parameters
    return made.unflatten(0, (batch, frames)).transpose(1, 2)


def in_float64(module: Any, task: str, source: torch.Tensor) -> torch.Tensor:
    """The right answer: the plain forward in float64 throughout."""
    dtype = next(module.parameters()).dtype
    with without_float32(), noise_in(dtype):
        judge = plainly(to(module, torch.float64), task, source.double())
    to(module, dtype)
    return judge


def beside(module: Any, task: str, source: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is given beside latents to a decoder that is conditioned on a timestep, whose noise is seeded here."""
    if task != "decode" or not module.config.get("timestep_conditioning"):
        return {}
    torch.manual_seed(0)
    return {"timestep": torch.full((len(source),), 1 / 16, dtype=source.dtype)}


def noise_in(dtype: torch.dtype) -> Any:
    """Noise of this dtype, whatever dtype is asked for: its numbers depend on that."""
    real = torch.randn

    def drawn(*size: Any, dtype: Any = None, own: torch.dtype = dtype, **given: Any) -> torch.Tensor:
        return real(*size, dtype=own, **given).to(dtype)

    return mock.patch.object(torch, "randn", drawn)


@contextmanager
def without_float32() -> Iterator[None]:
    """Some classes go through float32, which costs float64 its precision: in norms, attention and Wan's ×2."""
    upsamples = autoencoder_kl_wan.WanUpsample, autoencoder_kl_qwenimage.QwenImageUpsample
    first, second = (mock.patch.object(one, "forward", nn.Upsample.forward) for one in upsamples)

    real = torch.Tensor.to

    def stays(self: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        narrows = self.dtype == torch.float64 and torch.float32 in (*given, named.get("dtype"))
        return self if narrows else real(self, *given, **named)

    def features(self: Any, x: torch.Tensor) -> torch.Tensor:
        turned = torch.stack([x * (2**power * 2 * torch.pi) for power in range(self.start, self.stop)], 2).flatten(
            1, 2
        )
        return torch.cat([x, turned.sin(), turned.cos()], 1)

    third = mock.patch.object(autoencoder_kl_mochi.FourierFeatures, "forward", features)
    with first, second, third, mock.patch.object(torch.Tensor, "to", stays):
        yield


def distance(of: torch.Tensor, judge: torch.Tensor) -> float:
    return float((of.double() - judge).norm() / judge.norm())


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def source_for(
    task: str,
    frames: int,
    latents: tuple[int, int] = (5, 3),
    channels: int = 4,
    seed: int = 0,
    *,
    is_whole: bool = False,
) -> torch.Tensor:
    """Latents, or pixels: unless ``is_whole``, for encoders a few more than whole latents have."""
    height, width = latents
    if task == "decode":
        return noise(1, channels, frames, height, width, seed=seed)
    below, right = (0, 0) if is_whole else (3, 5)
    return noise(1, 3, 4 * frames - 3, 8 * height + below, 8 * width + right, seed=seed).clamp(-1, 1)


def takes_blocks(module: Any) -> bool:
    """Return whether a module's encoder takes whole latents only."""
    takes = (AutoencoderKLHunyuanVideo15, AutoencoderKLKVAEVideo)
    return bool(isinstance(module, takes) or module.config.get("patch_size"))
