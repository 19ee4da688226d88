"""Requests for text in ComfyUI's convention: read, and answered."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ....errors import RequestError
from ....models import TextSide
from ....models.comfyui_text import CLIP_LAYER, LEAST_CLIP_LAYER, ComfyFamily, Tower, comfy_family
from ..checking import Asked, Facts, TextLimits, read_inputs
from ..loading import TextParts
from .chat import run_chat
from .tokens import Special, Weighted, chunks_of
from .towers import Encoded, run_tower

#: The entries of a CONDITIONING: the tensor, and what is beside it.
COND, POOLED, MASK = "cond", "pooled_output", "attention_mask"


def family_of(side: TextSide) -> ComfyFamily:
    """Return the family of a pipeline's text encoders.

    Raises:
        RequestError: where ComfyUI's convention is not known for them.
    """
    family = comfy_family(side)
    if family is None:
        raise RequestError(f"text for ComfyUI is not made for {side.name}", expected="convention=diffusers")
    return family


def read_comfy_inputs(inputs: Mapping[str, object], side: TextSide, facts: Facts, limits: TextLimits) -> Asked:
    """The request that a mapping of JSON's types is.

    Args:
        inputs: ``prompt``, a text or a list of texts, the texts of the other encoders under the names that they
            have in the pipeline, and for CLIP ``clip_layer``, -1 to -24.
        side: What is known of the encoders.
        facts: What is known of the loaded ones.
        limits: What one request may hold.

    Raises:
        RequestError: for a pipeline of no known family, and whatever :func:`~..checking.read_inputs` refuses.
    """
    family = family_of(side)
    texts = {name: value for name, value in inputs.items() if name != CLIP_LAYER}
    asked = read_inputs(texts, side, facts, limits)
    options = {}
    layer = inputs.get(CLIP_LAYER)
    if layer is not None:
        is_right = isinstance(layer, int) and not isinstance(layer, bool) and LEAST_CLIP_LAYER <= layer <= -1
        if not is_right or CLIP_LAYER not in family.inputs:
            expected = f"{LEAST_CLIP_LAYER} to -1" if CLIP_LAYER in family.inputs else "a model with CLIP alone"
            raise RequestError(f"`{CLIP_LAYER}` cannot be", saw=repr(layer)[:60], expected=expected)
        options[CLIP_LAYER] = layer
    return Asked(asked.prompts, None, options)


def encode_as_comfyui(asked: Asked, side: TextSide, parts: TextParts) -> dict[str, list[torch.Tensor]]:
    """Return the entries of a CONDITIONING, each a list with a tensor for each prompt, in float32.

    ``cond`` is (1, tokens, width), ``pooled_output`` (1, width) and ``attention_mask`` (1, tokens), int64; most
    models have only some of them.

    Raises:
        RequestError: for a prompt that ComfyUI reads otherwise than can be done here.
    """
    family = family_of(side)
    made: dict[str, list[torch.Tensor]] = {}
    for index in range(asked.count):
        for name, tensor in _encode(index, asked, family, parts).items():
            made.setdefault(name, []).append(tensor)
    return made


def _encode(index: int, asked: Asked, family: ComfyFamily, parts: TextParts) -> dict[str, torch.Tensor]:
    if family.chat is not None:
        chat, texts = family.chat, asked.prompts["prompt"] or []
        tokenizer = getattr(parts.pipeline, chat.tokenizer)
        states, mask = run_chat(chat, parts.encoders[chat.encoder], tokenizer, texts[index])
        return {COND: states, **_pooled(family, _towers_of(index, asked, family, parts))} | (
            {} if mask is None else {MASK: mask}
        )
    encoded = _towers_of(index, asked, family, parts)
    return {COND: _joined(family, encoded), **_pooled(family, encoded)}


def _towers_of(index: int, asked: Asked, family: ComfyFamily, parts: TextParts) -> dict[str, Encoded]:
    """Return what each tower of a family makes of a text, by the name of its encoder."""
    towers = [tower for tower in family.towers if tower.encoder in parts.encoders]
    missing = [tower.encoder for tower in family.towers if tower not in towers and not tower.optional]
    if missing:
        raise RequestError(f"{family.name} needs its {missing[0]}", saw=f"encoders {', '.join(parts.encoders)}")
    tokens = {tower.encoder: _tokens(tower, index, asked, parts) for tower in towers}
    _even_out([tokens[tower.encoder] for tower in towers if tower.is_clip])
    encoded = {}
    for tower in towers:
        chunks, special = tokens[tower.encoder]
        model = parts.encoders[tower.encoder]
        encoded[tower.encoder] = run_tower(tower, model, chunks, special, asked.options.get(CLIP_LAYER))
    return encoded


def _pooled(family: ComfyFamily, encoded: Mapping[str, Encoded]) -> dict[str, torch.Tensor]:
    pooled = [encoded[name].pooled for name in family.pools]
    found = [tensor for tensor in pooled if tensor is not None]
    return {POOLED: torch.cat(found, dim=-1)} if found else {}


def _tokens(tower: Tower, index: int, asked: Asked, parts: TextParts) -> tuple[list[list[Weighted]], Special]:
    tokenizer = getattr(parts.pipeline, tower.tokenizer)
    special = Special.of(tokenizer, tower)
    if tower.pads_with_end and tokenizer.pad_token_id != special.end:
        raise RequestError(
            "text for ComfyUI is not made for Stable Diffusion 2",
            saw="a tokenizer that does not pad with its last token",
            expected="convention=diffusers",
        )
    positions = parts.encoders[tower.encoder].config.max_position_embeddings if tower.chunk else 0
    if tower.chunk and positions < tower.chunk:
        raise RequestError(
            "ComfyUI has no such text encoder",
            saw=f"one of {positions} tokens",
            expected=f"one of {tower.chunk}, as every CLIP of its models",
        )
    texts = asked.prompts.get(tower.prompt) or asked.prompts["prompt"] or []
    return chunks_of(texts[index], tokenizer, special, tower), special


def _even_out(texts: list[tuple[list[list[Weighted]], Special]]) -> None:
    """Give all encoders as many chunks, with empty ones, as ComfyUI's nodes with a text for each do."""
    most = max((len(chunks) for chunks, _ in texts), default=0)
    for chunks, special in texts:
        empty = [(token, 1.0) for token in special.empty(len(chunks[0]))]
        chunks += [empty] * (most - len(chunks))


def _joined(family: ComfyFamily, encoded: Mapping[str, Encoded]) -> torch.Tensor:
    towers = [tower for tower in family.towers if tower.encoder in encoded]
    states = [encoded[tower.encoder].states for tower in towers]
    if family.join in ("only", "last"):
        return states[-1]
    if family.join == "channels":
        return torch.cat(states, dim=-1)
    clip = torch.cat([one for one, tower in zip(states, towers, strict=True) if tower.is_clip], dim=-1)
    others = [one for one, tower in zip(states, towers, strict=True) if not tower.is_clip]
    width = others[0].shape[-1] if others else _SD3_WIDTH
    clip = torch.nn.functional.pad(clip, (0, width - clip.shape[-1]))
    return torch.cat([clip, *others], dim=1)


#: The width of T5-XXL, to which SD3's states of CLIP are filled up where T5 is missing.
_SD3_WIDTH = 4096
