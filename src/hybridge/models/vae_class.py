"""What each of diffusers' autoencoder classes has in common, whatever its weights: facts that need no weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .frames import STILL, FrameRule

#: Of Flux's and all similar pipelines: 2×2 latents are one token.
PACK = 2

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
        buffers: The statistics are known when the module is loaded, and ``mean`` and ``std`` are None until then:
            ``latents``, buffers of that name (LTX); ``batch norm``, the running statistics of the module ``bn``
            (FLUX.2); ``config``, defaults of the class.
        patch: The side of a square of latents whose channels are normalised together.
        per_frame: Whether there is a number for each latent frame.
        divides: Whether pipelines divide by 1 / std where others multiply by std, and multiply by 1 / factor where
            others divide: the last bits differ.
    """

    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    buffers: Literal["latents", "batch norm", "config"] | None = None
    patch: int = 1
    per_frame: bool = False
    divides: bool = False

    def __str__(self) -> str:
        """Say it in a few words, for tables."""
        if self.buffers or self.mean:
            each = "channel and latent frame" if self.per_frame else "channel"
            factor = "" if self.scaling_factor == 1 else f", factor {self.scaling_factor:g}"
            return f"mean and deviation of each {each}{factor}"
        if self == Normalisation():
            return "none"
        return f"{self.scaling_factor:g}" + (f", shift {self.shift_factor:g}" if self.shift_factor else "")


@dataclass(frozen=True, slots=True)
class VaeClass:
    """One of diffusers' classes.

    Attributes:
        name: Its name in ``config.json``.
        spatial: Pixels per latent on each side, from the config.
        normalisation: From the config.
        channels: The key of its latent channels in ``config.json``, and the default.
        kind: ``tiny`` for those that take and return latents that are already normalised.
        frames: Its frame rule, from the config.
        axes: The order of axes in pipelines' latents.
        pack: The side of the square of latents that pipelines pack into one token; 0 if they never pack.
        half: The half precision that its pipelines use, and why.
        colours: The config's (in_channels, out_channels) for pictures in colour.
        has_posterior: False if its encoder gives latents and no distribution.
        pixel_channels: 4 for pictures with alpha.
        has_frame_statistics: Whether its config has a mean and a deviation for each latent frame, too.
        folded: How many latent frames of the module pipelines have in the channels of one.
        beside: What else its pipelines have that may be sent by mistake, for errors.
        inpaints: Whether its decoder can be shown the picture that was inpainted, and the mask.
    """

    name: str
    spatial: Callable[[Config], int]
    normalisation: Callable[[Config], Normalisation]
    channels: tuple[str, int] = ("latent_channels", 4)
    kind: Kind = "kl"
    frames: Callable[[Config], FrameRule] = lambda _: STILL
    axes: Axes = "BCHW"
    pack: int = 0
    half: tuple[Half, str] = ("bfloat16", "bfloat16 cannot overflow, whatever the weights")
    colours: Callable[[Config], tuple[int, int]] = lambda _: (COLOURS, COLOURS)
    has_posterior: bool = True
    pixel_channels: int = COLOURS
    has_frame_statistics: bool = False
    folded: int = 1
    beside: str = ""
    inpaints: bool = False
