"""Counts what a forward makes: bytes alive at one time, and multiplications.  The meta device computes nothing.

Exact and the same at every run, for eager torch: what a compiler or a library takes inside of one call is not seen.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .nouns import Cost


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
    return Cost(counter.peak, counter.flops)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the storages that live at one time."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.flops = 0
        self._known = {
            tensor.untyped_storage()._cdata
            for module in modules
            for tensor in (*module.parameters(), *module.buffers())
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.now -= nbytes


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
