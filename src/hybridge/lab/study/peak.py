"""Exact bytes of live tensors at their highest, counted storage by storage.

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
        for storage in _weights(leaving_out):
            self._note(storage, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_iter(made):
            if isinstance(leaf, torch.Tensor):
                for part in parts(leaf):
                    storage = part.untyped_storage()
                    if storage._cdata not in self._seen:
                        self._note(storage, storage.nbytes())
        return made

    def _note(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        self._seen.add(storage._cdata)
        self.live_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._forget, storage._cdata, nbytes).atexit = False

    def _forget(self, address: int, nbytes: int) -> None:
        self._seen.discard(address)
        self.live_bytes -= nbytes


def parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that really hold memory: itself, or what a quantised one is made of."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from parts(getattr(tensor, name))


def _weights(modules: Iterable[torch.nn.Module]) -> Iterator[torch.UntypedStorage]:
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            for part in parts(tensor):
                yield part.untyped_storage()
