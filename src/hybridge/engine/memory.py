"""Running out of memory, on whatever device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import EngineFailure, OutOfMemory


@contextmanager
def failures_named(what: str, device: torch.device) -> Iterator[None]:
    """Turns the errors of a forward into ours: OutOfMemory where the device had no room, else EngineFailure."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # A CPU allocator raises a plain RuntimeError.
        if not isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) and "allocate memory" not in str(
            error
        ):
            raise EngineFailure(f"{what} failed", saw=str(error).splitlines()[0]) from error
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(
            f"{what} does not fit in the memory of {device}", hint="a smaller picture or batch"
        ) from None
