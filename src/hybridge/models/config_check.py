"""Check the values of a VAE's ``config.json`` before a module is made from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .vae_classes import VAE_CLASSES

#: An order of magnitude above any VAE.
_MOST_CHANNELS = 16_384
_MOST_BLOCKS = 8
_MOST_LAYERS = 32
_MOST_FACTOR = 1e6

_MOST_SHOWN = 80

Check = Callable[[Any], bool]


def _is_whole(least: int, most: int) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= _MOST_FACTOR  # also False for NaN


def _is_factor(value: Any) -> bool:
    return _is_number(value) and value > 0


def _are(check: Check, most: int = _MOST_BLOCKS) -> Check:
    return lambda value: isinstance(value, (list, tuple)) and 0 < len(value) <= most and all(map(check, value))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_CHANNELS = _is_whole(1, _MOST_CHANNELS), f"a whole number from 1 to {_MOST_CHANNELS}"
_CHANNELS_OF_BLOCKS = _are(_CHANNELS[0]), f"a list of 1 to {_MOST_BLOCKS} whole numbers from 1 to {_MOST_CHANNELS}"
_LAYERS = _is_whole(1, _MOST_LAYERS), f"a whole number from 1 to {_MOST_LAYERS}"
_LAYERS_OF_BLOCKS = (
    _are(_is_whole(0, _MOST_LAYERS)),
    f"a list of 1 to {_MOST_BLOCKS} whole numbers from 0 to {_MOST_LAYERS}",
)
_NAMES = _are(_is_text), f"a list of 1 to {_MOST_BLOCKS} names"
_FACTOR = _is_factor, f"a number above 0 and up to {_MOST_FACTOR:g}"
_NUMBER = _is_number, f"a number within ±{_MOST_FACTOR:g}"
_FLAG = _is_bool, "true or false"
_NAME = _is_text, "a name"

#: For each key, the check of its value (if present and not null), and the expected value for errors.
_KEYS: dict[str, tuple[Check, str]] = {
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "latent_channels": _CHANNELS,
    "norm_num_groups": _CHANNELS,
    "block_out_channels": _CHANNELS_OF_BLOCKS,
    "encoder_block_out_channels": _CHANNELS_OF_BLOCKS,
    "decoder_block_out_channels": _CHANNELS_OF_BLOCKS,
    "down_block_types": _NAMES,
    "up_block_types": _NAMES,
    "layers_per_block": (
        lambda value: _LAYERS[0](value) or _LAYERS_OF_BLOCKS[0](value),
        f"{_LAYERS[1]}, or a list of them",
    ),
    "z_dim": _CHANNELS,
    "z_channels": _CHANNELS,
    "num_encoder_blocks": _LAYERS_OF_BLOCKS,
    "num_decoder_blocks": _LAYERS_OF_BLOCKS,
    "upsampling_scaling_factor": (_is_whole(1, 8), "a whole number from 1 to 8"),
    "act_fn": _NAME,
    "upsample_fn": _NAME,
    "scaling_factor": _FACTOR,
    "shift_factor": _NUMBER,
    "latent_magnitude": _FACTOR,
    "latent_shift": _NUMBER,
    "force_upcast": _FLAG,
    "use_quant_conv": _FLAG,
    "use_post_quant_conv": _FLAG,
    "mid_block_add_attention": _FLAG,
}


def wrong_value(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return a config's first impossible value as (what was seen, what was expected); None if there is none."""
    return next(_wrong_values(config), None)


def _wrong_values(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, (is_right, expected) in _KEYS.items():
        value = config.get(key)
        if value is not None and not is_right(value):
            yield f"{key} {shown(value)}", expected
    known = VAE_CLASSES.get(str(config.get("_class_name"))) or VAE_CLASSES["AutoencoderKL"]
    channels = config.get(known.channels[0]) or known.channels[1]
    statistics = {
        "latents_mean": (_is_number, "numbers"),
        "latents_std": (_is_factor, "numbers above 0"),
    }
    for key, (check, named) in statistics.items():
        value = config.get(key)
        # diffusers' own defaults are empty in some releases.
        if value in (None, [], ()):
            continue
        fits = _are(check, _MOST_CHANNELS)(value)
        fits = fits and (len(value) == channels or (known.has_frame_statistics and len(value) % channels == 0))
        if not fits:
            yield f"{key} {shown(value)}", f"{channels} {named}, one for each latent channel"
    if str(config.get("_class_name")) != "AutoencoderKL":
        return
    blocks, groups = config.get("block_out_channels") or (64,), config.get("norm_num_groups") or 32
    if any(block % groups for block in blocks):
        yield f"norm_num_groups {groups}", f"a divisor of each of block_out_channels {shown(blocks)}"
    for key in ("down_block_types", "up_block_types"):
        names = config.get(key)
        if names is not None and len(names) != len(blocks):
            yield f"{len(names)} {key}", f"{len(blocks)}, as many as block_out_channels has"


def shown(value: object) -> str:
    """Return a value for an error message, shortened to a line."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**_MOST_SHOWN:
        return f"a number of {int(math.log10(abs(value))) + 1} digits"
    text = repr(list(value[:_MOST_BLOCKS]) if isinstance(value, (list, tuple)) else value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
