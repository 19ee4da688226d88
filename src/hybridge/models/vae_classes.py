"""The autoencoder classes that are served: diffusers', and three of our own.  A new class is a new row here."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Literal

from .frames import FIRST, FrameRule
from .vae_class import COLOURS, PACK, Config, Half, Normalisation, VaeClass

_BFLOAT16: tuple[Half, str] = ("bfloat16", "its pipelines run it in bfloat16")

Encodes = Literal["any", "exact", "drops"]


# ------------------------------------------------------------------------------------------- readers


def _blocks(key: str, *, default: int = 4) -> Callable[[Config], int]:
    """Every block but one halves the sides."""
    return lambda config: int(2 ** (len(config.get(key) or (0,) * default) - 1))


def _number(key: str, default: int) -> Callable[[Config], int]:
    return lambda config: int(config.get(key) or default)


def _product(key: str, default: tuple[int, ...]) -> Callable[[Config], int]:
    return lambda config: prod(map(int, config.get(key) or default))


def _causal(factor: Callable[[Config], int], encodes: Encodes = "exact") -> Callable[[Config], FrameRule]:
    return lambda config: FrameRule("causal", factor(config), encodes)


def _factors(scale: float, shift: float = 0.0, *, divides: bool = False) -> Callable[[Config], Normalisation]:
    """The two factors, or statistics where the config has them."""

    def read(config: Config) -> Normalisation:
        mean, std = (tuple(map(float, config.get(key) or ())) or None for key in ("latents_mean", "latents_std"))
        scaling, shifting = config.get("scaling_factor") or scale, config.get("shift_factor") or shift
        if not (mean and std):
            return Normalisation(float(scaling), float(shifting), divides=divides)
        return Normalisation(float(scaling), float(shifting), mean, std)

    return read


def _statistics(
    scale: float | None = None, *, divides: bool = False, per_frame: bool = False
) -> Callable[[Config], Normalisation]:
    """The statistics of the config, or the class's defaults; ``scale`` None for the config's own factor."""

    def read(config: Config) -> Normalisation:
        mean, std = (tuple(map(float, config.get(key) or ())) or None for key in ("latents_mean", "latents_std"))
        scaling = float(config.get("scaling_factor") or 1.0) if scale is None else scale
        where: Literal["config"] | None = None if mean and std else "config"
        return Normalisation(scaling, mean=mean, std=std, buffers=where, per_frame=per_frame, divides=divides)

    return read


def _of_weights(where: Literal["latents", "batch norm"], patch: int = 1) -> Callable[[Config], Normalisation]:
    return lambda config: Normalisation(float(config.get("scaling_factor") or 1.0), buffers=where, patch=patch)


def _ltx_ratio(key: str, patch: str, default: int) -> Callable[[Config], int]:
    """As the class computes it where its config does not say it."""

    def read(config: Config) -> int:
        given, scaling = config.get(key), config.get("spatio_temporal_scaling")
        if given:
            return int(given)
        return default if scaling is None else int(config.get(patch) or 1) * 2 ** sum(map(bool, scaling))

    return read


def _vidtok_frames(config: Config) -> FrameRule:
    downsamplings = config.get("tempo_ds")
    factor = 4 if downsamplings is None else 2 ** len(downsamplings)
    return FrameRule("causal" if config.get("is_causal", True) else "each", factor)


def _vidtok_spatial(config: Config) -> int:
    downsamplings = config.get("spatial_ds")
    return int(2 ** (len(config.get("ch_mult") or (0,) * 4) - 1 if downsamplings is None else len(downsamplings)))


def _taehv_frames(config: Config) -> FrameRule:
    return FrameRule("causal", _product("decoder_strides", (1, 2, 2))(config), "any")


def _taehv_spatial(config: Config) -> int:
    return int(int(config.get("patch_size") or 1) * 2 ** len(config.get("decoder_strides") or (0,) * 3))


def _magvit_frames(config: Config) -> FrameRule:
    return FrameRule("causal", int(2 ** (len(config.get("block_out_channels") or (0,) * 4) - 2)))


def _wan_colours(config: Config) -> tuple[int, int]:
    own = COLOURS * int(config.get("patch_size") or 1) ** 2
    return own, own


_LTX_SPATIAL = _ltx_ratio("spatial_compression_ratio", "patch_size", 32)
_LTX_TEMPORAL = _ltx_ratio("temporal_compression_ratio", "patch_size_t", 8)

# --------------------------------------------------------------------------------------------- rows

_PICTURES = (
    VaeClass(
        "AutoencoderKL",
        _blocks("block_out_channels", default=1),
        # Missing keys have the class's defaults: SD v1's config.json has no scaling factor.
        _factors(0.18215),
        pack=PACK,
        half=("bfloat16", "bfloat16 cannot overflow, whatever the weights"),
    ),
    VaeClass(
        "AutoencoderTiny",
        _blocks("decoder_block_out_channels"),
        _factors(1.0),
        kind="tiny",
        pack=PACK,
        half=("float16", "tiny autoencoders have no norms that overflow"),
        has_posterior=False,
    ),
    VaeClass(
        "AutoencoderTAESD",
        _number("spatial_factor", 8),
        _factors(1.0),
        ("latent_channels", 32),
        kind="tiny",
        half=("float16", "tiny autoencoders run in half precision"),
        has_posterior=False,
    ),
    VaeClass(
        "AutoencoderTAEQI",
        lambda _: 16,
        _factors(1.0),
        ("latent_channels", 64),
        kind="tiny",
        frames=lambda _: FIRST,
        axes="BCTHW",
        pack=1,
        half=("float16", "tiny autoencoders run in half precision"),
        colours=lambda _: (4, 4),
        has_posterior=False,
        pixel_channels=4,
    ),
    VaeClass(
        "AsymmetricAutoencoderKL",
        _blocks("down_block_out_channels", default=1),
        _factors(0.18215),
        half=("bfloat16", "bfloat16 cannot overflow, whatever the weights"),
        inpaints=True,
    ),
    VaeClass(
        "AutoencoderKLFlux2",
        _blocks("block_out_channels"),
        _of_weights("batch norm", patch=PACK),
        ("latent_channels", 32),
        pack=PACK,
        half=_BFLOAT16,
    ),
    VaeClass(
        "AutoencoderKLQwenImage",
        lambda config: int(2 ** len(config.get("temperal_downsample") or (0,) * 3)),
        _statistics(1.0, divides=True),
        ("z_dim", 16),
        frames=lambda _: FIRST,
        axes="BCTHW",
        pack=PACK,
        half=_BFLOAT16,
    ),
    VaeClass(
        "AutoencoderKLQwenImage21",
        _number("scale_factor_spatial", 16),
        _statistics(1.0),
        ("z_dim", 64),
        frames=lambda _: FIRST,
        axes="BCTHW",
        pack=1,
        half=_BFLOAT16,
        colours=lambda _: (4, 4),
        pixel_channels=4,
    ),
    VaeClass(
        "AutoencoderKLHunyuanImage",
        _number("spatial_compression_ratio", 32),
        _factors(1.0),
        ("latent_channels", 64),
        half=_BFLOAT16,
    ),
    VaeClass(
        "AutoencoderKLHunyuanImageRefiner",
        _number("spatial_compression_ratio", 16),
        _factors(1.03682),
        ("latent_channels", 32),
        frames=lambda _: FIRST,
        axes="BCTHW",
        folded=2,
        half=_BFLOAT16,
    ),
    VaeClass(
        "AutoencoderDC",
        _blocks("encoder_block_out_channels", default=6),
        _factors(1.0),
        ("latent_channels", 32),
        half=("bfloat16", "Sana's documentation runs it in bfloat16; its activations overflow float16"),
        has_posterior=False,
    ),
    VaeClass("AutoencoderKLKVAE", _blocks("ch_mult"), _factors(1.0), ("z_channels", 16), half=_BFLOAT16),
)

_VIDEOS = (
    VaeClass(
        "AutoencoderKLWan",
        _number("scale_factor_spatial", 8),
        _statistics(1.0, divides=True),
        ("z_dim", 16),
        frames=_causal(_number("scale_factor_temporal", 4), "drops"),
        axes="BCTHW",
        half=("bfloat16", "Wan's documentation runs it in float32; bfloat16 cannot overflow and takes half"),
        colours=_wan_colours,
    ),
    VaeClass(
        "AutoencoderTAEHV",
        _taehv_spatial,
        _factors(1.0),
        ("latent_channels", 16),
        kind="tiny",
        frames=_taehv_frames,
        axes="BCTHW",
        half=("float16", "tiny autoencoders run in half precision"),
        has_posterior=False,
    ),
    VaeClass(
        "AutoencoderKLHunyuanVideo",
        _number("spatial_compression_ratio", 8),
        _factors(0.476986),
        ("latent_channels", 16),
        frames=_causal(_number("temporal_compression_ratio", 4), "any"),
        axes="BCTHW",
        half=("float16", "HunyuanVideo's documentation runs it in float16"),
    ),
    VaeClass(
        "AutoencoderKLHunyuanVideo15",
        _number("spatial_compression_ratio", 16),
        _factors(1.03682),
        ("latent_channels", 32),
        frames=_causal(_number("temporal_compression_ratio", 4)),
        axes="BCTHW",
        half=_BFLOAT16,
    ),
    VaeClass(
        "AutoencoderKLLTXVideo",
        _LTX_SPATIAL,
        _of_weights("latents"),
        ("latent_channels", 128),
        frames=_causal(_LTX_TEMPORAL),
        axes="BCTHW",
        pack=1,
        half=_BFLOAT16,
    ),
    VaeClass(
        "AutoencoderKLLTX2Video",
        _LTX_SPATIAL,
        lambda _: Normalisation(),  # its pipelines denormalise latents before they return them
        ("latent_channels", 128),
        frames=_causal(_LTX_TEMPORAL),
        axes="BCTHW",
        half=_BFLOAT16,
        beside="latents of sound, which are not decoded here",
    ),
    VaeClass(
        "AutoencoderKLCogVideoX",
        _blocks("block_out_channels"),
        _factors(1.15258426, divides=True),
        ("latent_channels", 16),
        frames=lambda config: FrameRule("pairs", int(config.get("temporal_compression_ratio") or 4)),
        axes="BTCHW",
        half=_BFLOAT16,
    ),
    VaeClass(
        "AutoencoderKLMochi",
        _product("spatial_expansions", (2, 2, 2)),
        _statistics(),
        ("latent_channels", 12),
        frames=_causal(_product("temporal_expansions", (1, 2, 3))),
        axes="BCTHW",
        half=("bfloat16", "Mochi's authors run it in float32, its pipelines in bfloat16"),
        colours=lambda _: (15, COLOURS),  # its encoder adds Fourier features
    ),
    VaeClass(
        "AutoencoderKLAllegro",
        _blocks("block_out_channels"),
        _factors(0.13, divides=True),
        frames=lambda config: FrameRule("each", int(config.get("temporal_compression_ratio") or 4)),
        axes="BCTHW",
        half=(None, "Allegro's documentation runs it in float32"),
    ),
    VaeClass(
        "AutoencoderKLMagvit",
        _blocks("block_out_channels"),
        _factors(0.7125, divides=True),
        ("latent_channels", 16),
        frames=_magvit_frames,
        axes="BCTHW",
        half=_BFLOAT16,
    ),
    VaeClass(
        "AutoencoderKLCosmos",
        _number("spatial_compression_ratio", 8),
        _statistics(0.5, per_frame=True),  # the scheduler's sigma_data
        ("latent_channels", 16),
        frames=_causal(_number("temporal_compression_ratio", 8)),
        axes="BCTHW",
        half=_BFLOAT16,
        has_posterior=False,
        has_frame_statistics=True,
    ),
    VaeClass(
        "AutoencoderKLTemporalDecoder",
        _blocks("block_out_channels", default=1),
        _factors(0.18215, divides=True),
        frames=lambda _: FrameRule("each"),
        axes="BTCHW",
        half=(None, "Stable Video Diffusion's pipeline runs it in float32"),
    ),
    VaeClass(
        "Kandinsky6SRVAE",
        _blocks("encoder_block_out_channels", default=5),
        _factors(0.910344004631042),
        ("latent_channels", 64),
        frames=_causal(_number("temporal_compression_ratio", 4)),
        axes="BCTHW",
        half=_BFLOAT16,
    ),
    VaeClass(
        "AutoencoderKLKVAEVideo",
        _blocks("ch_mult"),
        _factors(1.0),
        ("z_channels", 16),
        frames=_causal(_number("temporal_compress_times", 4)),
        axes="BCTHW",
        half=_BFLOAT16,
    ),
    VaeClass(
        "AutoencoderVidTok",
        _vidtok_spatial,
        _factors(1.0),
        ("z_channels", 4),
        frames=_vidtok_frames,
        axes="BCTHW",
        half=_BFLOAT16,
    ),
)

VAE_CLASSES: dict[str, VaeClass] = {row.name: row for row in (*_PICTURES, *_VIDEOS)}
