"""The layers of text encoders: between two of them a run can be stopped, and tells how far it is.

Pipelines call their encoders themselves, so the engine cannot loop over the layers.
It adds a hook before each layer for the time of a run.
A hook that returns nothing does not change what the layer computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import Stopped

#: Called with (operations done, operations in total), about; the first never passes the second.
Progress = Callable[[int, int], None]

#: Called before every layer; True ends the run.
ShouldStop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an encoder.

    Attributes:
        module: The module.
        weights: Number of its weights.
    """

    module: nn.Module
    weights: int


def layers_of(encoders: Iterable[nn.Module]) -> tuple[Layer, ...]:
    """Return the members of the outermost lists of modules: each is a block with attention and a feed-forward."""
    found: list[Layer] = []
    for encoder in encoders:
        for child in encoder.children():
            if isinstance(child, nn.ModuleList):
                found += [Layer(one, sum(weight.numel() for weight in one.parameters())) for one in child]
            else:
                found += layers_of([child])
    return tuple(found)


@contextmanager
def told_between(
    layers: Sequence[Layer], operations: float, progress: Progress | None, should_stop: ShouldStop | None
) -> Iterator[None]:
    """Call ``progress`` and ``should_stop`` before every layer that runs in the block.

    On a GPU this is when a layer is queued, which is earlier than when it runs.

    Args:
        layers: The layers.
        operations: Number of operations of the whole run, about.
        progress: Hears how far it is.
        should_stop: Ends it.

    Raises:
        Stopped: in the block, when ``should_stop`` returned True.
    """
    of = max(1, int(operations))
    done = 0

    def hook_of(weights: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            nonlocal done
            if progress is not None:
                progress(min(done, of), of)
            if should_stop is not None and should_stop():
                raise Stopped("the encoding was stopped", saw=f"{min(done, of)} of about {of} operations done")
            done += 2 * weights * _tokens(given, named)

        return hook

    with ExitStack() as hooks:
        if progress is not None or should_stop is not None:
            for layer in layers:
                handle = layer.module.register_forward_pre_hook(hook_of(layer.weights), with_kwargs=True)
                hooks.callback(handle.remove)
        yield


def _tokens(given: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """Tokens in a layer's input, which is the first tensor that it is given: (…, tokens, width)."""
    tensor = next((one for one in (*given, *named.values()) if isinstance(one, torch.Tensor)), None)
    return 0 if tensor is None else tensor.shape[:-1].numel()
