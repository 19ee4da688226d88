"""Counts what a forward makes: bytes alive at one time, and multiplications.  The meta device computes nothing.

Exact and the same at every run, for eager torch: what a compiler or a library takes inside of one call is not seen.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import flop_registry

from ..harness.memory import PeakBytes
from .types import Cost


def cost(modules: Iterable[nn.Module], call: Callable[[], object], *, fused_attention: bool = True) -> Cost:
    """What a call takes on top of the weights of these modules.

    Args:
        modules: Their parameters and buffers are not counted.
        call: Makes its inputs itself, so that they are counted.
        fused_attention: Attention as a GPU's kernel does it, without the matrix of all pairs.  The meta device has
            no such kernel.
    """
    gc.collect()
    counter = _Counter(modules)
    with torch.no_grad(), ExitStack() as modes:
        modes.enter_context(counter)
        if fused_attention:
            modes.enter_context(_FusedAttention(counter))
        call()
    return Cost(counter.peak_bytes, counter.flops)


class _Counter(PeakBytes):  # type: ignore[no-untyped-call]
    """Counts multiplications too."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__(leaving_out=modules)
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_dispatch__(func, types, args, kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=made)
        return made


class _FusedAttention(TorchFunctionMode):
    """Answers for attention with a result of the right shape, laid out as FlashAttention lays it out."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> Any:
        # (…, heads, queries, width), heads inside of queries in memory: joining them afterwards copies nothing.
        *others, heads, queries, width = query.shape
        self._counter.flops += 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (width + value.shape[-1])
        return query.new_empty(*others, queries, heads, value.shape[-1]).transpose(-2, -3)
