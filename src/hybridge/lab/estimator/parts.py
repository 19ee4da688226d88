"""Builds a part of a pipeline on the meta device, counts its weights, and runs it there."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .live_tensors import cost
from .shapes import LATENT_PIXELS, Part
from .types import ConvAlgorithm, Cost, Weights

_DTYPES = {2: torch.bfloat16, 4: torch.float32}


def build(part: Part, itemsize: int = 4) -> nn.Module:
    """The part on the meta device, in float32 or bfloat16, in eval mode."""
    with _quiet(), torch.device("meta"):
        library = importlib.import_module(part.library)
        made_from: Any = getattr(library, part.class_name)
        if part.library == "transformers":
            module = made_from(made_from.config_class(**part.config))
        else:
            module = made_from(**part.config)
        built: nn.Module = module.to(_DTYPES[itemsize]).eval()
    return built


def weights(part: Part) -> Weights:
    """Counted on the module itself."""
    module = build(part)
    linear = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
    convolution = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d))
    parameters = dict(module.named_parameters())
    kept = getattr(module, "_keep_in_fp32_modules", None) or ()
    return Weights(
        linear=linear,
        convolution=convolution,
        other=sum(parameter.numel() for parameter in parameters.values()) - linear - convolution,
        float32=sum(value.numel() for name, value in parameters.items() if set(name.split(".")) & set(kept)),
        fused=sum(value.numel() for name, value in parameters.items() if _is_fused(name)),
    )


def forward_cost(
    part: Part, itemsize: int, batch: int, height: int, width: int, way: ConvAlgorithm = "fused"
) -> Cost:
    """What one forward takes on top of the weights.

    Args:
        itemsize: Bytes of a number: 2 or 4.
        height, width: Of the picture in pixels; text encoders have no use for them.
    """
    module = build(part, itemsize)
    _set_way(module, way)
    with _quiet():
        forward = _forward(part, module, itemsize, batch, height // LATENT_PIXELS, width // LATENT_PIXELS)
        return cost([module], forward, fused_attention=way in ("fused", "tiled"))


def _set_way(module: Any, way: ConvAlgorithm) -> None:
    if way == "tiled":
        module.enable_tiling()
    elif way == "sliced":
        module.set_attention_slice("max")
    elif way == "matrix":
        from diffusers.models.attention_processor import AttnProcessor

        module.set_attn_processor(AttnProcessor())


def _forward(part: Part, module: Any, itemsize: int, batch: int, high: int, wide: int) -> Callable[[], object]:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=_DTYPES[itemsize], device="meta")

    def tokens() -> torch.Tensor:
        return torch.zeros((batch, part.tokens), dtype=torch.long, device="meta")

    def text() -> torch.Tensor:
        return empty(batch, part.tokens, part.text_width)

    def latents() -> torch.Tensor:
        return empty(batch, part.latent_channels, high, wide)

    def unet(**more: Any) -> object:
        return module(latents(), torch.tensor(1.0), encoder_hidden_states=text(), **more)

    def unet_with_sizes() -> object:
        pooled, sizes = empty(batch, part.pooled_width), empty(batch, part.sizes)
        return unet(added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes})

    def sd3() -> object:
        return module(latents(), text(), empty(batch, part.pooled_width), empty(batch))

    def flux() -> object:
        # Latents are packed: 2×2 of them are one token.
        places = (high // 2) * (wide // 2)
        return module(
            hidden_states=empty(batch, places, 4 * part.latent_channels),
            encoder_hidden_states=text(),
            pooled_projections=empty(batch, part.pooled_width),
            timestep=empty(batch),
            img_ids=empty(places, 3),
            txt_ids=empty(part.tokens, 3),
            guidance=empty(batch) if part.config["guidance_embeds"] else None,
        )

    return {
        "clip": lambda: module(tokens(), output_hidden_states=True),
        "t5": lambda: module(tokens()),
        "unet": unet,
        "unet-sizes": unet_with_sizes,
        "sd3": sd3,
        "flux": flux,
        "decode": lambda: module.decode(latents()),
    }[part.call]


def _is_fused(name: str) -> bool:
    """Whether diffusers concatenates this one: all three of self-attention, keys and values of cross-attention."""
    own = {"to_k", "to_v", "add_k_proj", "add_v_proj", "add_q_proj"} | (set() if "attn2" in name else {"to_q"})
    return bool(own & set(name.split(".")))


@contextmanager
def _quiet() -> Iterator[None]:
    # diffusers warns that an empty list of modules should stay in float32.
    logger = logging.getLogger("diffusers.models.modeling_utils")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
