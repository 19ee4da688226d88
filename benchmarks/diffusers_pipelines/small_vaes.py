"""Small VAEs with random weights: one recipe for each of diffusers' classes, for these pipelines and for the tests.

Every function takes what shall differ from its recipe by the names of the class's own config.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch

#: Buffers with statistics of latents, which are zeros and ones in a new module.
_STATISTICS = ("latents_mean", "latents_std", "bn.running_mean", "bn.running_var")

#: Of most VAEs of videos.
_FOUR_LEVELS: dict[str, Any] = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1}


def make(component: Any, seed: int = 0, **config: Any) -> Any:
    """A frozen module of random weights; zeros, with which training starts, are replaced, so that all count."""
    torch.manual_seed(seed)
    module = component(**config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.05)
        for name, buffer in module.named_buffers():
            if name in _STATISTICS:
                buffer.uniform_(0.5, 1.5)
    return module.eval().requires_grad_(False)


# --------------------------------------------------------------------------------------------- pictures


def kl(latent_channels: int = 4, levels: int = 4, component: Any = diffusers.AutoencoderKL, **config: Any) -> Any:
    """An AutoencoderKL, or a class that is made like it; four levels make eight pixels per latent."""
    return make(
        component,
        **{
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "block_out_channels": (8, 8, 16, 16)[-levels:],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "latent_channels": latent_channels,
            **config,
        },
    )


def kl_like(scaling: float, shift: float | None = None, channels: int = 16) -> Any:
    """With these factors, and without quantising convolutions, as Flux and those after it have theirs."""
    return kl(
        channels,
        scaling_factor=scaling,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def flux2(**config: Any) -> Any:
    """Flux 2's."""
    return kl(32, component=diffusers.AutoencoderKLFlux2, **config)


def asymmetric() -> Any:
    """An AsymmetricAutoencoderKL, which inpainting may have."""
    return make(
        diffusers.AsymmetricAutoencoderKL,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        down_block_out_channels=(8, 8, 16, 16),
        up_block_out_channels=(8, 8, 16, 16),
        layers_per_down_block=1,
        layers_per_up_block=1,
        norm_num_groups=4,
    )


def tiny(latent_channels: int = 4) -> Any:
    """An AutoencoderTiny."""
    widths = (8,) * 4
    return make(
        diffusers.AutoencoderTiny,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        latent_channels=latent_channels,
    )


def deep_compression(**config: Any) -> Any:
    """Sana's AutoencoderDC."""
    both: dict[str, Any] = {
        "block_types": ("ResBlock", "EfficientViTBlock"),
        "block_out_channels": (8, 8),
        "qkv_multiscales": ((), (5,)),
        "layers_per_block": (1, 1),
    }
    halves = {f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in both.items()}
    own = {"latent_channels": 4, "attention_head_dim": 2, "scaling_factor": 0.41407}
    resampling = {"downsample_block_type": "conv", "upsample_block_type": "interpolate"}
    return make(diffusers.AutoencoderDC, **{**halves, **own, **resampling, **config})


def qwen_image(**config: Any) -> Any:
    """Qwen-Image's."""
    return make(diffusers.AutoencoderKLQwenImage, **{"base_dim": 4, "num_res_blocks": 1, **config})


def qwen_image_21() -> Any:
    """Qwen-Image 2.1's."""
    return make(
        diffusers.AutoencoderKLQwenImage21,
        base_dim=4,
        decoder_base_dim=4,
        num_res_blocks=1,
        dim_mult=[1, 2, 2, 2, 2],
    )


def hunyuan_image(**config: Any) -> Any:
    """HunyuanImage's, with eight pixels per latent in place of 32."""
    return make(
        diffusers.AutoencoderKLHunyuanImage,
        **{
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 8,
            "block_out_channels": (32, 32, 32, 32),
            "layers_per_block": 1,
            "spatial_compression_ratio": 8,
            "sample_size": 64,
            "scaling_factor": 0.75289,
            **config,
        },
    )


def hunyuan_image_refiner() -> Any:
    """HunyuanImage's refiner's."""
    return hunyuan_video_15(diffusers.AutoencoderKLHunyuanImageRefiner)


def kvae() -> Any:
    """Kandinsky's of pictures."""
    return make(diffusers.AutoencoderKLKVAE, channels=32, num_enc_blocks=1, num_dec_blocks=1, ch_mult=(1, 1, 1, 1))


# ----------------------------------------------------------------------------------------------- videos


def wan(**config: Any) -> Any:
    """Wan 2.1's."""
    return make(diffusers.AutoencoderKLWan, **{"base_dim": 4, "num_res_blocks": 1, **config})


def wan_22(**config: Any) -> Any:
    """Wan 2.2 5B's."""
    return wan(
        **{
            "base_dim": 8,
            "decoder_base_dim": 8,
            "z_dim": 48,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
            "latents_mean": [0.1 * n for n in range(48)],
            "latents_std": [1.0 + 0.1 * n for n in range(48)],
            **config,
        }
    )


def hunyuan_video(**config: Any) -> Any:
    """HunyuanVideo's."""
    return make(
        diffusers.AutoencoderKLHunyuanVideo,
        **{
            "latent_channels": 16,
            "norm_num_groups": 4,
            **_FOUR_LEVELS,
            **config,
        },
    )


def hunyuan_video_15(component: Any = diffusers.AutoencoderKLHunyuanVideo15, **config: Any) -> Any:
    """HunyuanVideo 1.5's, or a class that is made like it."""
    return make(
        component,
        **{
            "latent_channels": 8,
            "block_out_channels": (16, 16, 16, 16, 16),
            "layers_per_block": 1,
            "downsample_match_channel": False,
            "upsample_match_channel": False,
            **config,
        },
    )


def ltx(component: Any = diffusers.AutoencoderKLLTXVideo, **config: Any) -> Any:
    """LTX-Video 0.9.0's, or another's of its family."""
    return make(
        component,
        **{
            "latent_channels": 8,
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1, 1),
            "spatio_temporal_scaling": (True, True, True, False),
            "decoder_spatio_temporal_scaling": (True, True, True, False),
            "patch_size": 2,
            **config,
        },
    )


def ltx_091() -> Any:
    """LTX-Video 0.9.1's, whose decoder is conditioned on a timestep."""
    return ltx(
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        decoder_spatio_temporal_scaling=(True, True, True),
        decoder_inject_noise=(False, False, False, False),
        upsample_residual=(True, True, True),
        upsample_factor=(2, 2, 2),
        timestep_conditioning=True,
    )


def ltx_coarse() -> Any:
    """LTX-Video's with four pixels and four frames per latent, which a small picture has more of."""
    return ltx(
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )


def ltx_2() -> Any:
    """LTX-2's."""
    return ltx(
        diffusers.AutoencoderKLLTX2Video,
        decoder_block_out_channels=(8, 16, 32),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True, True),
        decoder_spatio_temporal_scaling=(True, True, True),
        decoder_causal=False,
        patch_size=4,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )


def ltx_2_of_one_level() -> Any:
    """LTX-2's with two pixels and two frames per latent."""
    return ltx(
        diffusers.AutoencoderKLLTX2Video,
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
        decoder_causal=False,
    )


def cogvideox(latent_channels: int = 16) -> Any:
    """CogVideoX's."""
    return make(
        diffusers.AutoencoderKLCogVideoX,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        latent_channels=latent_channels,
        norm_num_groups=2,
        **_FOUR_LEVELS,
    )


def mochi() -> Any:
    """Mochi's."""
    widths = (32, 32, 32, 32)
    return make(
        diffusers.AutoencoderKLMochi,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        layers_per_block=(1, 1, 1, 1, 1),
    )


def allegro(**config: Any) -> Any:
    """Allegro's."""
    return make(diffusers.AutoencoderKLAllegro, **_FOUR_LEVELS, norm_num_groups=2, **config)


def magvit(**config: Any) -> Any:
    """EasyAnimate's."""
    return make(diffusers.AutoencoderKLMagvit, **_FOUR_LEVELS, norm_num_groups=2, **config)


def cosmos(**config: Any) -> Any:
    """Cosmos 1.0's."""
    return make(
        diffusers.AutoencoderKLCosmos,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        **config,
    )


def stable_video() -> Any:
    """Stable Video Diffusion's."""
    return make(
        diffusers.AutoencoderKLTemporalDecoder,
        down_block_types=("DownEncoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
    )


def kandinsky6_sr() -> Any:
    """Kandinsky 6's of super-resolution."""
    widths = (8, 8, 8, 8, 8)
    return make(
        diffusers.Kandinsky6SRVAE,
        latent_channels=8,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        layers_per_block=1,
    )


def kvae_video() -> Any:
    """Kandinsky's of videos."""
    return make(diffusers.AutoencoderKLKVAEVideo, ch=32, num_res_blocks=1, ch_mult=(1, 1, 1, 1))


def vidtok() -> Any:
    """VidTok's."""
    return make(diffusers.AutoencoderVidTok, ch=32, ch_mult=[1, 1, 1, 1], num_res_blocks=1)
