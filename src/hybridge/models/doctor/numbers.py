"""What is wrong with the numbers of latents and of pictures, by their statistics.

The thresholds stay silent for latents of photographs, of drawings, of one colour and of noise: see
``tests/models/doctor/test_valid.py``.  The arrays are NumPy's, or torch's where a function says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .. import latent_space
from ..layout import Layout
from ..spec import ModelSpec
from ..vae_class import Normalisation
from . import bits
from .causes import Finding

#: Fewest latents of a side of which statistics are taken: smaller ones vary too much.
_LEAST_SIDE = 16

#: Most rows, columns and frames that statistics are taken of.
_MOST_SIDE = 128

_MOST_FRAMES = 4

#: Root mean squares of a pipeline's latents: those of pictures are within 0.7 and 1.7.
_LIKELY = (0.6, 1.8)

#: Those that no pictures have.
_UNLIKELY = (0.45, 2.5)

#: Beyond these not even noise at the beginning of a diffusion process (its deviation is up to 15) is meant.
_IMPOSSIBLE = (0.005, 40.0)

#: The difference of neighbours, relative to the root mean square: 1.41 for noise, 0.3 to 1 for pictures, and less
#: for pictures of one colour, whose statistics say nothing.
_ROUGH = (0.33, 1.2)

_ALPHA = 3

#: How far below 0 bicubic and Lanczos filters get at the edges of [0, 1].
_OVERSHOT = 0.25

#: Values of a picture are within ±1; far beyond are those above this.
_FAR = 2.0
_FAR_SHARE = 0.5

#: Of these, one pixel in so many of a side is looked at.
_STEP = 4

#: Latents whose neighbours differ by less may be of one colour.
_LEAST_STEP = 0.1

#: Pixels of one colour differ by less than this.
_ONE_COLOUR = 1 / 255


class Statistics(NamedTuple):
    """Of latents: their root mean square and the difference of neighbours relative to it."""

    rms: float
    roughness: float


def examine_bits(data: bytes | bytearray | memoryview, dtype: str) -> Iterator[Finding]:
    """Yield findings about the bytes of latents: of another dtype or byte order, or damaged at their beginning."""
    if dtype == "uint8":
        yield Finding("uint8-latents", "uint8", "floats; or the encode endpoint, if these are pixels")
        return
    found = bits.explain(data, dtype)
    if found is not None:
        yield found
    elif bits.holds_pointers(data, dtype):
        yield Finding(
            "freed-memory",
            "the first 32 bytes hold addresses of memory, so the picture's first corner may be wrong",
            "tensor.detach().cpu().contiguous() before sending, which diffusers' remote_decode since 0.39 needs for"
            " tensors on a GPU",
        )


def examine_latents(latents: Any, spec: ModelSpec, sent: Normalisation | None, layout: Layout) -> Iterator[Finding]:
    """Yield findings about finite latents, for warnings.

    Args:
        latents: NumPy's array, as sent.
        spec: The model.
        sent: The normalisation of the latents; None for VAE space.
        layout: Their layout.
    """
    wide = latents.astype("float32", copy=False)
    z = latent_space.unpack(wide, layout)[:1]
    patch = spec.normalisation.patch  # latents in VAE space may have other sides than whole patches
    z = z[..., : min(_MOST_SIDE, layout.height - layout.height % patch), :]
    z = z[..., : min(_MOST_SIDE, layout.width - layout.width % patch)]
    if layout.has_frame_axis:
        z = z[:, :, :_MOST_FRAMES]
    yield from _pixels(z)
    if min(z.shape[-2:]) < _LEAST_SIDE or (spec.kind == "tiny" and spec.parent is None):
        return
    if layout.is_packed and layout.height != layout.width:
        yield from _swapped(wide[:1], layout)
    meant = _statistics(latent_space.to_pipeline(z, spec, sent))
    other = _statistics(z if sent is None else latent_space.to_pipeline(z, spec, None))
    if meant.rms == 0 or not math.isfinite(meant.rms):
        return
    is_unlikely = not _UNLIKELY[0] < meant.rms < _UNLIKELY[1]
    is_picture = _ROUGH[0] < meant.roughness and (sent is None or meant.roughness < _ROUGH[1])
    if is_unlikely and is_picture and _LIKELY[0] < other.rms < _LIKELY[1]:
        yield _in_the_other_space(spec, sent, meant.rms)
    elif not _IMPOSSIBLE[0] < meant.rms < _IMPOSSIBLE[1]:
        yield Finding(
            "unlikely-scaling",
            f"with this scaling the latents have a root mean square of {meant.rms:.3g}, and those of pictures"
            " about 1",
            _own_factors(spec),
        )


def _in_the_other_space(spec: ModelSpec, sent: Normalisation | None, rms: float) -> Finding:
    if sent is None:
        return Finding(
            "latents-look-normalised",
            "the latents were taken as the VAE's own, and look like a pipeline's: scaled, their root mean"
            f" square is {rms:.2g} instead of about 1",
            f"{_own_factors(spec)}, or do_scaling=True",
        )
    return Finding(
        "latents-look-denormalised",
        "the latents were taken as a pipeline's, and look like the VAE's own: they have a root mean square of"
        f" {rms:.2g} instead of about 1",
        "no scaling_factor, and do_scaling=False",
    )


def _own_factors(spec: ModelSpec) -> str:
    own = spec.normalisation
    if own.mean or own.buffers:
        return "do_scaling=True"
    shift = f" and shift_factor={own.shift_factor:g}" if own.shift_factor else ""
    return f"scaling_factor={own.scaling_factor:g}{shift}"


def examine_pixels(pixels: Any) -> Iterator[Finding]:
    """Yield a finding about floats whose range is guessed, if they are within [0, 1] but for a little below.

    Args:
        pixels: NumPy's array, as sent.
    """
    low, high = float(pixels.min()), float(pixels.max())
    if -_OVERSHOT < low < 0:
        yield Finding(
            "uncertain-range",
            f"floats from {low:.2g} to {high:.2g} were taken as [-1, 1]",
            "value_range=unit, if these are [0, 1] and resizing made some less than 0; value_range=signed, if not",
        )


def _pixels(z: Any) -> Iterator[Finding]:
    """Find pixels with alpha, which have as many channels as latents of Stable Diffusion."""
    if z.shape[1] != _ALPHA + 1 or z.size < _LEAST_SIDE**2:
        return
    low, high = float(z.min()), float(z.max())
    if low < 0 or high > 1 or high - low < _ONE_COLOUR:
        return
    alpha = z[:, _ALPHA]
    is_opaque = float(alpha.min()) == float(alpha.max()) == 1.0
    yield Finding(
        "pixels-as-latents",
        f"four channels of numbers within 0 to 1{', the last of them 1 throughout' if is_opaque else ''}",
        "the encode endpoint with three channels, if these are pixels",
        is_certain=is_opaque,
    )


def _swapped(tokens: Any, layout: Layout) -> Iterator[Finding]:
    """Compare the rows of packed latents as sent with those of the exchanged size; pictures have smooth columns."""
    from dataclasses import replace

    other = replace(layout, batch=1, height=layout.width, width=layout.height)
    layouts = (replace(layout, batch=1), other)
    as_sent, exchanged = (_row_difference(latent_space.unpack(tokens, each)) for each in layouts)
    if as_sent > 1.3 * exchanged > 0:
        yield Finding(
            "height-and-width-swapped",
            f"the latents are smooth at {other.picture[1]}x{other.picture[0]} pixels, and not at the"
            f" {layout.picture[1]}x{layout.picture[0]} that were sent",
            f"height={other.picture[0]} and width={other.picture[1]}",
        )


def _row_difference(z: Any) -> float:
    # Rows two apart: of neighbours, one half are of the same token, however tokens are arranged.
    return float(abs(z[..., 2:, :] - z[..., :-2, :]).mean())


def root_mean_square(z: Any) -> float:
    """Return the root mean square of NumPy's array."""
    return math.sqrt(float((z.astype("float64") ** 2).mean()))


def _statistics(z: Any) -> Statistics:
    rms = root_mean_square(z)
    if not rms:
        return Statistics(0.0, 0.0)
    steps = z[..., 1:] - z[..., :-1]
    return Statistics(rms, float(steps.std()) / rms)


def vary(latents: Any) -> bool:
    """Return whether latents vary from place to place, so that a picture of one colour is not what they say."""
    found = _statistics(latents.astype("float32", copy=False))
    return found.rms * found.roughness > _LEAST_STEP


def examine_output(sample: Any, varies: Callable[[], bool]) -> Iterator[Finding]:
    """Yield findings about decoded pictures, without taking memory of their size.

    Args:
        sample: (B, 3, H, W), about [-1, 1], NumPy's or torch's, on any device.
        varies: Whether their latents vary; only asked about pictures of one colour.
    """
    low, high = float(sample.min()), float(sample.max())
    reach = max(-low, high)
    low, high = max(-1.0, min(1.0, low)), max(-1.0, min(1.0, high))
    if (high - low) / 2 < _ONE_COLOUR and varies():
        colour = "black" if high <= -1 + _ONE_COLOUR else "white" if low >= 1 - _ONE_COLOUR else "one colour"
        yield Finding(
            "flat-output",
            f"the picture is {colour} throughout, although the latents vary",
            "a look at the scaling and the weights",
        )
        return
    if reach <= _FAR:
        return
    seen = sample[..., ::_STEP, ::_STEP]
    far = float((abs(seen) > _FAR).sum()) / math.prod(seen.shape)
    if far > _FAR_SHARE:
        yield Finding(
            "output-out-of-range",
            f"{far:.0%} of the picture is beyond twice what a screen shows",
            "a look at the scaling of the latents and at the model",
        )
