"""One text encoder over the chunks of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ....errors import RequestError
from ....models.comfyui_text import Tower
from .tokens import Special, Weighted


class Encoded(NamedTuple):
    """What an encoder makes of a text.

    Attributes:
        states: (1, tokens of all chunks, width), float32.
        pooled: (1, width) of the first chunk, float32; None where it is not used.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None


def run_tower(
    tower: Tower, model: Any, chunks: Sequence[Sequence[Weighted]], special: Special, clip_layer: int | None
) -> Encoded:
    """Encode the chunks of one text together, and apply its weights.

    A weight moves a token's state away from that of the empty text at the same place.

    Args:
        tower: What is used of the encoder.
        model: The encoder.
        chunks: The tokens.
        special: The tokens of the empty text.
        clip_layer: The layer in place of the tower's own, from the end; None for that.
    """
    weights = [[weight for _, weight in chunk] for chunk in chunks]
    ids = [[token for token, _ in chunk] for chunk in chunks]
    is_weighted = any(weight != 1.0 for chunk in weights for weight in chunk)
    if is_weighted:
        ids.append(special.empty(len(ids[0])))
    device = model.get_input_embeddings().weight.device
    tokens = torch.tensor(ids, dtype=torch.int64, device=device)
    states, pooled = _forward(tower, model, tokens, special, clip_layer)
    texts = states[: len(chunks)]
    if is_weighted:
        texts = reweighted(texts, states[-1], weights)
    return Encoded(texts.flatten(0, 1).unsqueeze(0), None if pooled is None else pooled[:1])


def reweighted(texts: torch.Tensor, empty: torch.Tensor, weights: Sequence[Sequence[float]]) -> torch.Tensor:
    """Move states (texts, tokens, width) away from those of the empty text (tokens, width) by their weights."""
    factors = torch.tensor(weights, dtype=torch.float32, device=texts.device).unsqueeze(-1)
    # Where nothing is weighted, subtracting and adding would only round.
    return torch.where(factors == 1.0, texts, (texts - empty) * factors + empty)


def _forward(
    tower: Tower, model: Any, ids: torch.Tensor, special: Special, clip_layer: int | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the states (chunks, tokens, width) and the pooled vectors, in float32."""
    mask = _mask_of(ids, special) if tower.is_masked else None
    layer = clip_layer if clip_layer is not None and tower.is_clip else tower.layer
    kept: list[torch.Tensor] = []
    # CLIP's classes with and without projection have other paths to the same parts.
    inner = getattr(model, "text_model", model)
    layers = inner.encoder.layers if tower.is_clip else ()
    if layer is not None and -layer > len(layers):
        layer = None  # as ComfyUI: a layer that the encoder does not have is the last
    hook = None
    if layer is not None:
        hook = layers[layer].register_forward_hook(lambda *made: kept.append(_tensor_of(made[-1])))
    try:
        made = model(input_ids=ids, attention_mask=mask)
    finally:
        if hook is not None:
            hook.remove()
    last = made.last_hidden_state
    states = last if layer is None else kept[-1]
    if layer is not None and tower.is_normed:
        states = inner.final_layer_norm(states)
    states = states.float()
    if mask is not None:
        states = states * mask.unsqueeze(-1)
    return states, _pooled(tower, model, last, ids, special)


def _pooled(
    tower: Tower, model: Any, last: torch.Tensor, ids: torch.Tensor, special: Special
) -> torch.Tensor | None:
    """Return the state of the first end of each chunk."""
    if tower.pooled is None:
        return None
    ends = (ids == special.end).int().argmax(dim=-1)
    pooled = last[torch.arange(len(ids), dtype=torch.int64, device=last.device), ends]
    if tower.pooled == "projected":
        projection = getattr(model, "text_projection", None)
        if projection is None:
            raise RequestError(
                f"the {tower.encoder} has no projection", saw=type(model).__name__, expected="one with projection"
            )
        pooled = projection(pooled)
    return pooled.float()


def _mask_of(ids: torch.Tensor, special: Special) -> torch.Tensor:
    """Return ones up to the first end of each chunk, and zeros after it."""
    ends = (ids == special.end).int()
    return (ends.cumsum(dim=-1) - ends == 0).long()


def _tensor_of(made: Any) -> torch.Tensor:
    tensor: torch.Tensor = made[0] if isinstance(made, tuple) else made
    return tensor
