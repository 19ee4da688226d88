"""Rows of the catalogue that follow from their class: videos, and the pictures of later architectures."""

from __future__ import annotations

from .spec import from_class

_PLAYGROUND = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.5,
    "latents_mean": (-1.6574, 1.886, -1.383, 2.5155),
    "latents_std": (8.4927, 5.9022, 6.5498, 5.2299),
    "force_upcast": True,
}

# fmt: off
_WAN_22_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.157, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
_WAN_22_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on

_WAN_22 = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": _WAN_22_MEAN,
    "latents_std": _WAN_22_STD,
}

_SANA = {
    **{f"{half}_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3 for half in ("encoder", "decoder")},
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
    "scaling_factor": 0.41407,
}

_HUNYUAN_IMAGE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 64,
    "block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "layers_per_block": 2,
    "spatial_compression_ratio": 32,
    "sample_size": 384,
    "scaling_factor": 0.75289,
}

_SVD = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}

#: The encoder is Stable Diffusion's.
_ASYMMETRIC = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "down_block_out_channels": (128, 256, 512, 512),
    "layers_per_down_block": 2,
    "sample_size": 256,
}

LATER_PICTURES = (
    from_class(
        "playground-v2.5",
        "Playground v2.5",
        "playgroundai/playground-v2.5-1024px-aesthetic",
        "AutoencoderKL",
        _PLAYGROUND,
    ),
    from_class("flux2", "FLUX.2", "black-forest-labs/FLUX.2-dev", "AutoencoderKLFlux2"),
    from_class("qwen-image", "Qwen-Image", "Qwen/Qwen-Image", "AutoencoderKLQwenImage"),
    from_class("qwen-image-2.1", "Qwen-Image 2.1", "Qwen/Qwen-Image-2.1", "AutoencoderKLQwenImage21"),
    from_class(
        "hunyuan-image",
        "HunyuanImage 2.1",
        "hunyuanvideo-community/HunyuanImage-2.1-Diffusers",
        "AutoencoderKLHunyuanImage",
        _HUNYUAN_IMAGE,
    ),
    from_class(
        "hunyuan-image-refiner",
        "HunyuanImage 2.1's refiner",
        "hunyuanvideo-community/HunyuanImage-2.1-Refiner-Diffusers",
        "AutoencoderKLHunyuanImageRefiner",
    ),
    from_class(
        "sana",
        "Sana (also Sana Sprint)",
        "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
        "AutoencoderDC",
        _SANA,
    ),
    *(
        from_class(
            f"asymmetric-{factor}",
            f"Stable Diffusion v1, for inpainting, with a decoder {factor} times as wide",
            f"cross-attention/asymmetric-autoencoder-kl-x-{factor.replace('.', '-')}",
            "AsymmetricAutoencoderKL",
            {**_ASYMMETRIC, "up_block_out_channels": widths, "layers_per_up_block": layers},
            subfolder=None,
        )
        for factor, widths, layers in (("1.5", (192, 384, 768, 768), 3), ("2", (256, 512, 1024, 1024), 5))
    ),
)

VIDEOS = (
    from_class(
        "wan-2.1",
        "Wan 2.1, and 2.2 of 14 B (also SkyReels V2)",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "AutoencoderKLWan",
    ),
    from_class(
        "wan-2.2-5b",
        "Wan 2.2 of 5 B",
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        "AutoencoderKLWan",
        _WAN_22,
    ),
    from_class(
        "hunyuan-video",
        "HunyuanVideo (also FramePack)",
        "hunyuanvideo-community/HunyuanVideo",
        "AutoencoderKLHunyuanVideo",
    ),
    from_class(
        "hunyuan-video-1.5",
        "HunyuanVideo 1.5",
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v",
        "AutoencoderKLHunyuanVideo15",
    ),
    from_class("ltx-video", "LTX-Video", "Lightricks/LTX-Video", "AutoencoderKLLTXVideo", is_whole=False),
    from_class(
        "ltx-2",
        "LTX-2",
        "Lightricks/LTX-2",
        "AutoencoderKLLTX2Video",
        {"decoder_causal": False},
        is_whole=False,
    ),
    from_class("cogvideox-2b", "CogVideoX of 2 B", "THUDM/CogVideoX-2b", "AutoencoderKLCogVideoX"),
    from_class(
        "cogvideox-5b",
        "CogVideoX of 5 B (also 1.5)",
        "THUDM/CogVideoX-5b",
        "AutoencoderKLCogVideoX",
        {"scaling_factor": 0.7},
    ),
    from_class("mochi", "Mochi 1", "genmo/mochi-1-preview", "AutoencoderKLMochi"),
    from_class("allegro", "Allegro", "rhymes-ai/Allegro", "AutoencoderKLAllegro"),
    from_class(
        "easyanimate",
        "EasyAnimate 5.1",
        "alibaba-pai/EasyAnimateV5.1-12b-zh-diffusers",
        "AutoencoderKLMagvit",
        is_whole=False,
    ),
    from_class("cosmos", "Cosmos 1.0", "nvidia/Cosmos-1.0-Diffusion-7B-Text2World", "AutoencoderKLCosmos"),
    from_class(
        "svd",
        "Stable Video Diffusion",
        "stabilityai/stable-video-diffusion-img2vid-xt",
        "AutoencoderKLTemporalDecoder",
        _SVD,
    ),
    from_class(
        "kandinsky6-sr",
        "Kandinsky 6, super-resolution",
        "kandinskylab/Kandinsky-6.0-VSR-distilled2steps-5s-Diffusers",
        "Kandinsky6SRVAE",
    ),
)
