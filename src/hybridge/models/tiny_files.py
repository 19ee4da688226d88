"""Read tiny autoencoders in files of their author's layout: TAESD's two halves, and TAEHV's one file.

Names and shapes of the tensors tell everything about the layers.  They do not tell whose latents the layers take;
the names of the published files do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .vae_class import COLOURS

Shapes = Mapping[str, tuple[int, ...]]

#: The models whose latents the published files take, by the files' names; those of diffusers' class have rows.
PARENTS = {
    "taef2": "flux2",
    "taeqi2_1": "qwen-image-2.1",
    "taesana": "sana",
    "taehv": "hunyuan-video",
    "taehv1_5": "hunyuan-video-1.5",
    "taew2_1": "wan-2.1",
    "taew2_2": "wan-2.2-5b",
}

#: Classes whose parent is a row of another class.
CLASSES = ("AutoencoderTAESD", "AutoencoderTAEQI", "AutoencoderTAEHV")

#: The half, then the number of the layer.
_KEY = re.compile(r"(?:taesd_)?(encoder|decoder)\.(\d+)\.(.+)")

_FILE = re.compile(r"(.+)_(encoder|decoder)")

#: Names that only one half has where the halves are separate files.
_HALVES = (
    ("taesd_encoder.", ("0.weight", "1.conv.0.weight")),
    ("taesd_encoder.", ("0.weight", "4.conv.0.weight")),
    ("taesd_encoder.", ("1.weight", "3.conv.0.weight", "4.weight")),
    ("taesd_decoder.", ("1.weight", "4.conv.0.weight")),
)

#: Channels of 2×2 pixels with alpha.
_FOLDED_ALPHA = 4 * (COLOURS + 1)

#: TAEHV's layers that change the number of frames.
_POOLS, _GROWS = (2, 7, 12), (7, 13, 19)


def half_of_taesd(shapes: Shapes) -> str | None:
    """Return the name prefix for a file with one half of a TAESD; None for any other file."""
    return next((start for start, names in _HALVES if all(name in shapes for name in names)), None)


def stem_of(path: Path) -> str | None:
    """Return ``taesd`` for ``taesd_decoder.safetensors`` and ``taesd_encoder.safetensors``; None for others."""
    match = _FILE.fullmatch(path.stem)
    return match[1] if match else None


def other_half(path: Path) -> Path | None:
    """Return ``taesd_encoder.safetensors`` for ``taesd_decoder.safetensors``, and vice versa; else None."""
    match = _FILE.fullmatch(path.stem)
    if match is None:
        return None
    return path.with_stem(f"{match[1]}_{'encoder' if match[2] == 'decoder' else 'decoder'}")


def own_name(key: str, *, is_of_diffusers: bool) -> str | None:
    """Return a tensor's name in the module: in diffusers' AutoencoderTiny, or in one of :data:`CLASSES`."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    if not is_of_diffusers:
        return f"{match[1]}.{match[2]}.{match[3]}"
    # TAESD's decoder begins with a clamp, which in diffusers is not one of the layers.
    return f"{match[1]}.layers.{int(match[2]) - (match[1] == 'decoder')}.{match[3]}"


def read_config(shapes: Shapes) -> dict[str, Any] | None:
    """Return the ``config.json`` of the tiny autoencoder in a file, or None if it is none of these layouts.

    Args:
        shapes: The shapes of all tensors by name, the halves with ``taesd_encoder.`` and ``taesd_decoder.``.
    """
    own = {name: shape for key, shape in shapes.items() if (name := own_name(key, is_of_diffusers=False))}
    if "decoder.1.weight" not in own:
        return None
    if "decoder.7.conv.weight" in own:
        return _taehv(own)
    if side(own, "decoder.19.weight", 0) == _FOLDED_ALPHA:
        return {
            "_class_name": "AutoencoderTAEQI",
            "latent_channels": side(own, "decoder.1.weight", 1),
            "width": side(own, "decoder.17.weight", 0),
        }
    if "decoder.3.pool.0.weight" in own or "decoder.22.weight" in own:
        return {
            "_class_name": "AutoencoderTAESD",
            "latent_channels": side(own, "decoder.1.weight", 1),
            "spatial_factor": 32 if "decoder.22.weight" in own else 8,
            "width": side(own, "decoder.17.weight", 0),
            "has_pool": "decoder.3.pool.0.weight" in own,
        }
    width = side(own, "decoder.1.weight", 0)
    return {
        "_class_name": "AutoencoderTiny",
        "latent_channels": side(own, "decoder.1.weight", 1),
        "encoder_block_out_channels": (side(own, "encoder.0.weight", 0) or width,) * 4,
        "decoder_block_out_channels": (width,) * 4,
    }


def _taehv(own: Shapes) -> dict[str, Any]:
    width = side(own, "encoder.0.weight", 0)
    widths = tuple(side(own, f"decoder.{layer}.weight", 0) for layer in (1, 8, 14, 20))
    pixels = side(own, "decoder.22.weight", 0)
    return {
        "_class_name": "AutoencoderTAEHV",
        "latent_channels": side(own, "decoder.1.weight", 1),
        "patch_size": round((pixels / COLOURS) ** 0.5),
        "encoder_width": width,
        "decoder_widths": widths,
        "encoder_strides": tuple(side(own, f"encoder.{layer}.conv.weight", 1) // max(1, width) for layer in _POOLS),
        "decoder_strides": tuple(
            side(own, f"decoder.{layer}.conv.weight", 0) // max(1, before)
            for layer, before in zip(_GROWS, widths, strict=False)
        ),
    }


def side(shapes: Shapes, name: str, axis: int) -> int:
    """Return one side of a convolution's weight, or 0 if there is no such weight."""
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) >= 4 else 0
