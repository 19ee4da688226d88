"""What each of diffusers' autoencoder classes has in common, whatever its weights: facts that need no weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .frames import STILL, FrameRule

Kind = Literal["kl", "tiny"]

#: The order of a tensor's axes as pipelines have latents: B batch, C channels, T frames, H and W.
Axes = Literal["BCHW", "BCTHW", "BTCHW"]

Half = Literal["float16", "bfloat16"] | None

Config = Mapping[str, Any]

#: Channels of a picture: red, green and blue.
COLOURS = 3


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How pipelines scale VAE latents to about unit variance.

    ``(z - shift_factor) * scaling_factor``, or, with ``mean`` and ``std``, ``(z - mean) * scaling_factor / std``.

    Attributes:
        scaling_factor: The factor.
        shift_factor: The shift.
        mean: A number for each channel; for each channel of 2×2 latents, with ``patch`` 2; or for each channel and
            latent frame, channel by channel, with ``per_frame``.
        std: As many.
        buffers: The statistics are among the weights: ``latents``, buffers of that name (LTX); ``batch norm``, the
            running statistics of the module ``bn`` (FLUX.2).  ``mean`` and ``std`` are None until they are loaded.
        patch: The side of a square of latents whose channels are normalised together.
        per_frame: Whether there is a number for each latent frame.
        divides: Whether pipelines divide by 1 / std where others multiply by std: the last bits differ.
    """

    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    buffers: Literal["latents", "batch norm"] | None = None
    patch: int = 1
    per_frame: bool = False
    divides: bool = False


def _spatial_by_blocks(key: str, *, default: int = 4) -> Callable[[Config], int]:
    return lambda config: int(2 ** (len(config.get(key) or (0,) * default) - 1))


def _number(key: str, default: int) -> Callable[[Config], int]:
    return lambda config: int(config.get(key) or default)


def _factors(scale: float, shift: float = 0.0) -> Callable[[Config], Normalisation]:
    def read(config: Config) -> Normalisation:
        mean, std = (tuple(map(float, config.get(key) or ())) or None for key in ("latents_mean", "latents_std"))
        both = (mean, std) if mean and std else (None, None)
        return Normalisation(
            float(config.get("scaling_factor") or scale), float(config.get("shift_factor") or shift), *both
        )

    return read


def _statistics(
    mean: tuple[float, ...], std: tuple[float, ...], *, divides: bool = False
) -> Callable[[Config], Normalisation]:
    def read(config: Config) -> Normalisation:
        return Normalisation(
            float(config.get("scaling_factor") or 1.0),
            mean=tuple(map(float, config.get("latents_mean") or mean)),
            std=tuple(map(float, config.get("latents_std") or std)),
            divides=divides,
        )

    return read


_KL_SPATIAL = _spatial_by_blocks("block_out_channels", default=1)
_NO_FACTORS = _factors(1.0)


@dataclass(frozen=True, slots=True)
class VaeClass:
    """One of diffusers' classes.

    Attributes:
        name: Its name in ``config.json``.
        kind: ``tiny`` for those that take and return latents that are already normalised.
        channels: The key of its latent channels in ``config.json``, and the default.
        spatial: Pixels per latent on each side, from the config.
        frames: Its frame rule, from the config.
        normalisation: From the config.
        axes: The order of axes in pipelines' latents.
        pack: The side of the square of latents that pipelines pack into one token; 0 if they never pack.
        half: The half precision that its pipelines use, and why.
        colours: The config's (in_channels, out_channels) for pictures in colour.
        has_posterior: False if its encoder gives latents and no distribution.
        pixel_channels: 4 for pictures with alpha.
        has_frame_statistics: Whether its config has a mean and a deviation for each latent frame, too.
    """

    name: str
    kind: Kind = "kl"
    channels: tuple[str, int] = ("latent_channels", 4)
    spatial: Callable[[Config], int] = _KL_SPATIAL
    frames: Callable[[Config], FrameRule] = lambda _: STILL
    normalisation: Callable[[Config], Normalisation] = _NO_FACTORS
    axes: Axes = "BCHW"
    pack: int = 0
    half: tuple[Half, str] = ("bfloat16", "bfloat16 cannot overflow, whatever the weights")
    colours: Callable[[Config], tuple[int, int]] = lambda _: (COLOURS, COLOURS)
    has_posterior: bool = True
    pixel_channels: int = COLOURS
    has_frame_statistics: bool = False


# Wan 2.1's, which Qwen-Image uses as well: the defaults of both classes.
_WAN_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_WAN_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


def _wan_colours(config: Config) -> tuple[int, int]:
    own = COLOURS * int(config.get("patch_size") or 1) ** 2
    return own, own


#: Of Flux's and all similar pipelines: 2×2 latents are one token.
PACK = 2

_ROWS = (
    VaeClass(
        "AutoencoderKL",
        # Missing keys have the class's defaults: SD v1's config.json has no scaling factor.
        normalisation=_factors(0.18215),
        pack=PACK,
    ),
    VaeClass(
        "AutoencoderTiny",
        kind="tiny",
        spatial=_spatial_by_blocks("decoder_block_out_channels"),
        pack=PACK,
        half=("float16", "tiny autoencoders have no norms that overflow"),
        has_posterior=False,
    ),
    VaeClass(
        "AutoencoderKLWan",
        channels=("z_dim", 16),
        spatial=_number("scale_factor_spatial", 8),
        frames=lambda config: FrameRule("causal", int(config.get("scale_factor_temporal") or 4), "drops"),
        normalisation=_statistics(_WAN_MEAN, _WAN_STD, divides=True),
        axes="BCTHW",
        half=("bfloat16", "Wan's documentation runs it in float32; bfloat16 cannot overflow and takes half"),
        colours=_wan_colours,
    ),
)

VAE_CLASSES: dict[str, VaeClass] = {row.name: row for row in _ROWS}
