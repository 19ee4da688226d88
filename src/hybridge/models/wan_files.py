"""Read VAEs of Wan in one file of their authors' layout, as in ComfyUI's ``models/vae``; Qwen-Image's has it too.

Names and shapes of the tensors tell everything about the layers.  They do not tell Wan 2.1 and Qwen-Image apart,
which have equal layers and other weights; the names of the published files do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .tiny_files import Shapes, side

#: The models of the published files, by the files' names in lower case.
ROWS = {
    "wan_2.1_vae": "wan-2.1",
    "wan2.1_vae": "wan-2.1",
    "wan2_1_vae_bf16": "wan-2.1",
    "wan2_1_vae_fp32": "wan-2.1",
    "wan2.2_vae": "wan-2.2-5b",
    "wan2_2_vae_bf16": "wan-2.2-5b",
    "wan2_2_vae_fp32": "wan-2.2-5b",
    "qwen_image_vae": "qwen-image",
}

#: diffusers' classes whose weights have this layout.
CLASSES = ("AutoencoderKLWan", "AutoencoderKLQwenImage")

#: A tensor that all of these files have, and no other layout.
MARK = "decoder.middle.0.residual.0.gamma"

#: Blocks of the decoder at one size in Wan 2.1, the last of which enlarges: they are counted through all sizes.
_BLOCKS = 4

#: How names begin, in the file and in the module; the same in encoder and decoder.
_STARTS = (
    ("conv1.", "quant_conv."),
    ("conv2.", "post_quant_conv."),
    *(
        (f"{half}.{given}", f"{half}.{own}")
        for half in ("encoder", "decoder")
        for given, own in (
            ("conv1.", "conv_in."),
            ("head.0.", "norm_out."),
            ("head.2.", "conv_out."),
            ("middle.0.", "mid_block.resnets.0."),
            ("middle.1.", "mid_block.attentions.0."),
            ("middle.2.", "mid_block.resnets.1."),
        )
    ),
)

_LAYERS = (
    ("residual.0.", "norm1."),
    ("residual.2.", "conv1."),
    ("residual.3.", "norm2."),
    ("residual.6.", "conv2."),
    ("shortcut.", "conv_shortcut."),
)

_ENCODER = re.compile(r"encoder\.downsamples\.(\d+)\.((?:residual|shortcut|resample|time_conv)\..+)")
_DECODER = re.compile(r"decoder\.upsamples\.(\d+)\.((?:residual|shortcut|resample|time_conv)\..+)")
_NESTED = re.compile(r"(encoder|decoder)\.(down|up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.+)")


def own_name(key: str) -> str | None:
    """Return a tensor's name in diffusers' module; None for tensors that are none of the VAE's."""
    if match := _NESTED.fullmatch(key):  # Wan 2.2
        half, way, level, block, rest = match.groups()
        return f"{half}.{way}_blocks.{level}." + _in_level(rest, f"resnets.{block}.", f"{way}sampler.")
    if match := _ENCODER.fullmatch(key):
        return f"encoder.down_blocks.{match[1]}." + _in_level(match[2], "", "")
    if match := _DECODER.fullmatch(key):
        level, block = divmod(int(match[1]), _BLOCKS)
        return f"decoder.up_blocks.{level}." + _in_level(match[2], f"resnets.{block}.", "upsamplers.0.")
    for given, own in _STARTS:
        if key.startswith(given):
            return own + _layer(key.removeprefix(given))
    return None


def _in_level(rest: str, resnet: str, sampler: str) -> str:
    """Return a tensor's name in one level, of the layers in a residual block or of those that change the size."""
    is_sampler = rest.startswith(("resample.", "time_conv."))
    return sampler + rest if is_sampler else resnet + _layer(rest)


def _layer(rest: str) -> str:
    return next((own + rest.removeprefix(given) for given, own in _LAYERS if rest.startswith(given)), rest)


def read_config(own: Shapes) -> dict[str, Any]:
    """Return what shapes tell of the ``config.json``; the model's row tells the rest.

    Args:
        own: The shapes of all tensors, by their names in the file.
    """
    return {
        "_class_name": CLASSES[0],
        "latent_channels": side(own, "conv2.weight", 0),
        "base_dim": side(own, "encoder.conv1.weight", 0),
        "decoder_base_dim": side(own, "decoder.head.0.gamma", 0),
    }


def config_as_in(class_name: str, config: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's ``config.json``.

    Args:
        class_name: The class of the model's row.
        config: What the row changes of its class's defaults.
        found: What :func:`read_config` has found.
    """
    widths = {"base_dim": found["base_dim"], "z_dim": found["latent_channels"]}
    if class_name == CLASSES[0]:
        widths["decoder_base_dim"] = found["decoder_base_dim"]
    return {"_class_name": class_name, **config, **widths}


def row_of(path: Path) -> str | None:
    """Return the catalogue row that a published file's name tells; None for other names."""
    return ROWS.get(path.stem.lower())
