"""Exact bytes of tensors, every storage once: those that live while something runs, and those that modules hold.

The same number at every run, on the CPU and on the meta device.  Eager only: what a compiled program or another
engine allocates is not seen here.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_iter


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages of tensors that operators give while it is on.

    Attributes:
        live_bytes: Of those that live now.
        peak_bytes: Of those that lived at one time, at most.
    """

    def __init__(self, leaving_out: Iterable[torch.nn.Module] = ()) -> None:
        """
        Args:
            leaving_out: Modules whose weights do not count, nor views of them.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = self.peak_bytes = 0
        # Python keeps one object for a storage as long as the storage lives, so its end is the storage's.
        # Addresses are used again afterwards, which is why they are forgotten then.
        self._seen: set[int] = set()
        for module in leaving_out:
            for tensor in held(module):
                self.leave_out(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_iter(made):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf)
        return made

    def count(self, tensor: torch.Tensor) -> None:
        """Counts a tensor, unless its storages are counted or left out: one that was there before, say."""
        for part in parts(tensor):
            storage = part.untyped_storage()
            if storage._cdata not in self._seen:
                self._note(storage, storage.nbytes())

    def leave_out(self, tensor: torch.Tensor) -> None:
        """Does not count a tensor, nor views of it."""
        self._note(tensor.untyped_storage(), 0)

    def _note(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        self._seen.add(storage._cdata)
        self.live_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._forget, storage._cdata, nbytes).atexit = False

    def _forget(self, address: int, nbytes: int) -> None:
        self._seen.discard(address)
        self.live_bytes -= nbytes


def storage_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's parameters and buffers, every storage once; nothing for what is on the meta device.

    A weight in fewer bits is made of several tensors (the integers, their scales): those are counted.
    """
    storages = [part.untyped_storage() for part in held(module) if part.device.type != "meta"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def held(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """What a module's parameters and buffers are made of; see :func:`parts`."""
    for tensor in (*module.parameters(), *module.buffers()):
        yield from parts(tensor)
    for part in module.modules():
        if type(part).__name__ == "LinearPackedParams":  # torch.ao's, which no parameter shows
            packed: Any = part
            yield from (tensor for tensor in packed._weight_bias() if tensor is not None)


def parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that really hold memory: itself, or what a quantised one is made of."""
    if is_traceable_wrapper_subclass(tensor):  # torchao's and quanto's
        for name in tensor.__tensor_flatten__()[0]:
            yield from parts(getattr(tensor, name))
        return
    yield tensor
    for scales in ("SCB", "absmax", "nested_absmax"):  # bitsandbytes keeps them beside the weight
        beside = getattr(tensor, scales, None)
        if beside is not None:
            yield beside
