"""What a module's own forward takes: counted by running it on the ``meta`` device, which computes nothing.

For modules that no program describes.  The memory is what diffusers' code keeps alive, without what a convolution
takes internally.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from ..models.vae_class import COLOURS
from .program.program import Task
from .vae_adapters import Adapter, Call

#: (B, C, T, H, W)
_VIDEO_AXES = 5


@dataclass(frozen=True, slots=True)
class WholeCost:
    """Of one call.

    Attributes:
        peak_bytes: Most bytes alive at one time on top of the weights, input and output included.
        flops: Floating-point operations.
        ends_bytes: Of input and result.
    """

    peak_bytes: int
    flops: int
    ends_bytes: int


def whole_cost(
    module: Any,
    adapter: Adapter,
    task: Task,
    shape: tuple[int, ...],
    *,
    is_bitwise: bool,
    shown: tuple[int, int] | None = None,
) -> WholeCost:
    """Return the cost of a call with an input of this shape.

    Args:
        module: On the ``meta`` device, in the dtype that it runs in.
        adapter: How it is called.
        task: ``decode`` or ``encode``.
        shape: Of the module's input.
        is_bitwise: As in :class:`Call`.
        shown: Height and width of a picture and a mask that a decoder is shown, if it is.
    """
    dtype = next(module.parameters()).dtype
    counter = _Counter(module)
    with torch.no_grad(), counter:  # in inference mode convolutions are not told apart
        source = torch.empty(shape, dtype=dtype, device="meta")
        image, mask = (
            None if shown is None else torch.empty((shape[0], channels, *shown), dtype=dtype, device="meta")
            for channels in (COLOURS, 1)
        )
        made = adapter.run(module, task, source, Call(is_bitwise=is_bitwise, image=image, mask=mask))
    return WholeCost(counter.peak_bytes, counter.flops, source.nbytes + made.nbytes)


def whole_cost_of_many(
    module: Any,
    adapter: Adapter,
    task: Task,
    shape: tuple[int, ...],
    *,
    is_bitwise: bool,
    step: int,
    shown: tuple[int, int] | None = None,
) -> WholeCost:
    """Return :func:`whole_cost`; of many frames, for a class that works chunk by chunk, from two shorter calls.

    Args:
        module: As above.
        adapter: As above.
        task: As above.
        shape: As above; of a module with frames (B, C, T, H, W).
        is_bitwise: As above.
        step: Frames of the input between two numbers whose last chunks are alike.
        shown: As above.
    """
    cost = partial(whole_cost, module, adapter, task, is_bitwise=is_bitwise, shown=shown)
    if adapter.finish is None or len(shape) != _VIDEO_AXES:
        return cost(shape)
    frames = shape[2]
    first = frames % step + max(step, 2)
    if frames <= first + step:
        return cost(shape)
    one, other = (cost((*shape[:2], count, *shape[3:])) for count in (first, first + step))
    steps = (frames - first) // step
    # From the second chunk on the layers' peaks are alike, while the input and the result grow.
    ends = (other.ends_bytes - one.ends_bytes) * (steps - 1)
    whole_ends = other.ends_bytes + ends
    peak_bytes = max(other.peak_bytes + ends, 2 * whole_ends)
    return WholeCost(peak_bytes, one.flops + steps * (other.flops - one.flops), whole_ends)


class _Counter(TorchDispatchMode):
    """Counts the bytes of storages alive, and operations."""

    def __init__(self, module: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = self.flops = 0
        self._live_bytes = 0
        weights = (*module.parameters(), *module.buffers())
        self._seen = {tensor.untyped_storage()._cdata for tensor in weights}
        self._weights = weights  # kept alive, so that no other storage gets their addresses

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_iter(made):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=made)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._seen:
            return
        # Python keeps one object for a storage as long as the storage lives, so its end is the storage's.
        self._seen.add(storage._cdata)
        self._live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes()).atexit = False

    def _forget(self, address: int, nbytes: int) -> None:
        self._seen.discard(address)
        self._live_bytes -= nbytes
