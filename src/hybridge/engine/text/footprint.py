"""The memory that text encoders take beside their weights, computed before they run.

Before an encoder runs, its config and the shape of its input are known, and nothing large has been allocated.
That is when a run asks for memory.
The formula counts what transformers keeps at the same time, with every factor rounded up.
Tests compare it with the allocator's peak for every pipeline, on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ...models import TextSide
from ...models.text_side import Encoder
from .checking import Asked
from .cost import tokens_of
from .loading import TextParts

#: Called before an encoder runs with the bytes that the run takes at most, from its beginning; raises to refuse.
Reserve = Callable[[int], None]

#: Called by torch before a module runs with its arguments.
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]

#: Bytes of float32, to which norms and softmax convert.
_FLOAT = 4

#: Bytes of the numbers in masks and positions.
_INT = 8

#: What a layer keeps of each token, in states: its input, the residual, the normed state, and its output.
_STATES = 4

#: Wide tensors of each token at the same time, in the attention (q, k and v turned, repeated and joined) or in the
#: feed-forward (gate, activation and its intermediate results, product).
_WIDE = 6

#: float32 copies of a state in a norm.
_NORMED = 3

#: Scores of eager attention at the same time: as they are, capped or masked, and after the softmax.
_SCORES = 3

#: Tensors over all pairs of positions for a mask: as bools, as numbers, and while they are joined.
_MASKS = 3

#: T5's distances between positions, in whole numbers, while they are sorted into buckets.
_DISTANCES = 7

#: Biases of all heads: as they are, in the order that attention needs, and joined with the mask.
_BIASES = 3

#: Copies of the result while a pipeline stacks, joins and repeats it.
_COPIES = 3


@dataclass(frozen=True, slots=True)
class Sizes:
    """One encoder, as far as its memory depends on it.

    Attributes:
        width: Numbers of a state.
        inner: Numbers of a token in the feed-forward, or in all heads together if that is more.
        heads: Attention heads.
        layers: Layers.
        itemsize: Bytes of a number.
        is_eager: Whether attention keeps its scores.
        has_bias: Whether every pair of positions has a bias, as in T5.
        vocabulary: Numbers of a token in the logits; 0 where they are not computed.
        vision: The part that reads pictures, if there is one.
        patch: Its pixels on a side of a patch.
    """

    width: int
    inner: int
    heads: int
    layers: int
    itemsize: int
    is_eager: bool = False
    has_bias: bool = False
    vocabulary: int = 0
    vision: Sizes | None = None
    patch: int = 1

    def peak_bytes(self, batch: int, tokens: int, *, is_masked: bool, keeps_states: bool) -> int:
        """Return what a forward takes at most.

        Args:
            batch: Prompts.
            tokens: Of each, with padding.
            is_masked: Whether it is told which tokens are padding.
            keeps_states: Whether the states of all layers are kept until the end.
        """
        every = batch * tokens
        live = every * (_STATES * self.width + _WIDE * max(self.inner, self.width)) * self.itemsize
        live += every * _NORMED * self.width * _FLOAT + self._pairs_bytes(batch, tokens, is_masked)
        logits = every * self.vocabulary * (self.itemsize + _FLOAT)
        return self.states_bytes(batch, tokens, keeps_states=keeps_states) + live + logits

    def states_bytes(self, batch: int, tokens: int, *, keeps_states: bool) -> int:
        """Return what is left when the forward has ended: the last state, or those of all layers."""
        return batch * tokens * self.width * self.itemsize * (self.layers + 1 if keeps_states else 1)

    def result_bytes(self, batch: int, tokens: int, results: int) -> int:
        """Return the bytes of embeddings of so many states, and of a mask, which may be as large as one state."""
        return batch * tokens * self.width * (results * self.itemsize + _INT)

    def _pairs_bytes(self, batch: int, tokens: int, is_masked: bool) -> int:
        """Of all pairs of positions."""
        masks, biases, scores = batch * _MASKS * _FLOAT, 0, 0
        if self.has_bias:
            biases = _DISTANCES * _INT + _BIASES * self.heads * _FLOAT * (1 + batch * is_masked)
        if self.is_eager:
            scores = batch * self.heads * _SCORES * _FLOAT
        return tokens * tokens * (masks + biases + scores)


def sizes_of(model: Any) -> Sizes:
    """Return the sizes of a loaded model of transformers."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    vocabulary = head.weight.shape[0] if isinstance(head, nn.Linear) else 0
    itemsize = max((one.itemsize for one in model.parameters() if one.is_floating_point()), default=_FLOAT)
    own = _of_config(config, itemsize)
    reads_pictures = getattr(model.config, "vision_config", None)
    vision = None if reads_pictures is None else _of_config(reads_pictures, itemsize)
    return replace(own, vocabulary=vocabulary, vision=vision)


def _of_config(config: Any, itemsize: int) -> Sizes:
    def number(*names: str) -> int:
        return next((int(value) for name in names if (value := getattr(config, name, None))), 0)

    heads = number("num_attention_heads", "num_heads") or 1
    width = number("embed_dim", "hidden_size")
    inner = number("intermediate_size", "d_ff") or width * number("mlp_ratio")
    return Sizes(
        width,
        max(inner, heads * number("head_dim", "d_kv")),
        heads,
        number("num_hidden_layers", "depth"),
        itemsize,
        is_eager=getattr(config, "_attn_implementation", None) == "eager",
        has_bias=hasattr(config, "relative_attention_num_buckets"),
        patch=number("patch_size") or 1,
    )


@contextmanager
def reserved(
    asked: Asked, side: TextSide, parts: TextParts, default: Callable[[str], Any], reserve: Reserve | None
) -> Iterator[None]:
    """Ask for memory before every encoder that runs in the block.

    Args:
        asked: The request.
        side: What is known of the encoders.
        parts: The encoders.
        default: The default of an option.
        reserve: Asked each time for the peak of the run from its beginning to the end of that encoder.
    """
    if reserve is None:
        yield
        return
    left_bytes = _zeros_bytes(asked, side, parts, default)

    def hook_of(own: Sizes, results: int, most_tokens: int) -> Hook:
        def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            nonlocal left_bytes
            batch, tokens = _shape(given, named)
            kept = {"keeps_states": bool(named.get("output_hidden_states"))}
            peak = own.peak_bytes(batch, tokens, is_masked=named.get("attention_mask") is not None, **kept)
            if own.vision is not None:
                peak = max(peak, _picture_bytes(own.vision, named.get("pixel_values")))
            # Pipelines stack and join what they get, and some fill it up to the maximal length.
            result = own.result_bytes(batch, max(tokens, most_tokens), results)
            made = own.states_bytes(batch, tokens, **kept) + _COPIES * result
            reserve(max(left_bytes + max(peak, made), _COPIES * (left_bytes + result)))
            left_bytes += result

        return hook

    with ExitStack() as hooks:
        for encoder in side.encoders:
            model = parts.encoders.get(encoder.name)
            if model is not None:
                own = sizes_of(model)
                most = 0 if side.pads_to_longest else tokens_of(encoder, asked, default)
                hook = hook_of(own, _results(encoder, own, asked, default), most)
                hooks.callback(model.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _results(encoder: Encoder, sizes: Sizes, asked: Asked, default: Callable[[str], Any]) -> int:
    """Hidden states of an encoder that are in the embeddings."""
    if encoder.layers is not None:
        _, option = encoder.layers
        return len(asked.options.get(option, default(option)))
    return sizes.layers + 1 if encoder.stacks_all else 1


def _zeros_bytes(asked: Asked, side: TextSide, parts: TextParts, default: Callable[[str], Any]) -> int:
    """What a pipeline puts in place of an encoder that it was saved without: zeros for its denoiser."""
    width = getattr(getattr(parts.pipeline, "transformer", None), "joint_attention_dim", 0)
    absent = [encoder for encoder in side.encoders if encoder.name not in parts.encoders]
    tokens = sum(tokens_of(encoder, asked, default) for encoder in absent)
    return int(2 * asked.count * tokens * width * parts.dtype.value.itemsize)


def _shape(given: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[int, int]:
    """Prompts and tokens in an encoder's input."""
    ids = named.get("input_ids", given[0] if given else None)
    ids = named.get("inputs_embeds") if ids is None else ids
    return (int(ids.shape[0]), int(ids.shape[1])) if isinstance(ids, torch.Tensor) else (0, 0)


def _picture_bytes(vision: Sizes, pixels: Any) -> int:
    """What pictures take; they are (pictures, 3, height, width), or (patches, numbers of a patch)."""
    if not isinstance(pixels, torch.Tensor):
        return 0
    pictures, patches = 1, pixels.shape[0]
    if pixels.dim() > 2:
        pictures, patches = pixels.shape[0], pixels.shape[-2] * pixels.shape[-1] // vision.patch**2
    return 2 * pixels.nbytes + vision.peak_bytes(pictures, patches + 1, is_masked=False, keeps_states=True)
