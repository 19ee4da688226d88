"""Copy rows of offloaded activations between a device and its host while the device computes.

Copies run on their own stream, concurrently with the computation.  On the device a copy uses a few rows that no
other code uses, so two rules are enough: a copy begins after all computation that was queued before it, and code
that needs the copied rows, or wants to reuse their memory, waits for the copy first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch

from .strips import Rows


class Copies(ABC):
    """Copies to and from a device; they run one after another in the order in which they were begun."""

    @abstractmethod
    def begin(self, source: torch.Tensor, target: torch.Tensor) -> Any:
        """Begin a copy after the work queued so far; the result is for :meth:`wait`."""

    @abstractmethod
    def wait(self, copy: Any) -> None:
        """Make work that is queued from now on wait for the copy."""

    @abstractmethod
    def finish(self) -> None:
        """Make work that is queued from now on wait for all copies."""


class InTurn(Copies):
    """Copies in the device's normal order of work, for devices without a better known way."""

    def begin(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy immediately."""
        target.copy_(source)

    def wait(self, copy: None) -> None:
        """Do nothing: the copy is complete."""

    def finish(self) -> None:
        """Do nothing: all copies are complete."""


class OnStream(Copies):
    """Copies on a separate CUDA stream, between the device and pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch does not annotate it

    def begin(self, source: torch.Tensor, target: torch.Tensor) -> Any:
        """Begin the copy and return immediately."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def wait(self, copy: Any) -> None:
        """Return immediately; the device waits."""
        torch.cuda.current_stream(self._device).wait_event(copy)

    def finish(self) -> None:
        """Return immediately; the device waits."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


def copies_for(device: torch.device) -> Copies | None:
    """Return the device's copies; None for a CPU, which reads offloaded values directly."""
    if device.type == "cpu":
        return None
    return OnStream(device) if device.type == "cuda" else InTurn()


class Fetched(Rows):
    """An offloaded value that prefetches: the next rows are copied while the device computes with the current ones.

    Args:
        copies: The device's copies.
        parked: The value on the host, (1, C, H, W).
        like: A tensor on the device to fetch to.
        most: Most rows that are requested at a time.
    """

    def __init__(self, copies: Copies, parked: torch.Tensor, like: torch.Tensor, most: int) -> None:
        self._copies, self._parked = copies, parked
        self.height, self.width = parked.shape[2:]
        self._place = _place(parked, like, most)
        self._coming: tuple[int, int, Any] | None = None  # first row, end, copy

    def pieces(self, start: int, stop: int, following: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield one piece; the rows after it will overwrite its memory."""
        if start < stop:
            coming = self._coming
            if coming is None or coming[:2] != (start, stop):
                coming = self._fetch(start, stop)
            self._copies.wait(coming[2])
            yield start, self._place[:, :, : stop - start]
        self._coming = self._fetch(stop, following) if stop < following else None

    def _fetch(self, start: int, stop: int) -> tuple[int, int, Any]:
        copy = self._copies.begin(self._parked[:, :, start:stop], self._place[:, :, : stop - start])
        return start, stop, copy


class Sent:
    """A writer that copies computed rows to an offloaded value.

    Args:
        copies: The device's copies.
        parked: The value on the host, (1, C, H, W).
        like: A tensor on the device that computes the rows.
        most: Most rows that are sent at a time.
    """

    def __init__(self, copies: Copies, parked: torch.Tensor, like: torch.Tensor, most: int) -> None:
        self._copies, self._parked = copies, parked
        self._place = _place(parked, like, most)
        self._going: Any = None

    def send(self, first: int, end: int, made: torch.Tensor) -> None:
        """Send rows [first, end); their memory may be reused immediately."""
        if self._going is not None:
            self._copies.wait(self._going)
        rows = self._place[:, :, : end - first]
        rows.copy_(made)
        self._going = self._copies.begin(rows, self._parked[:, :, first:end])


def _place(parked: torch.Tensor, like: torch.Tensor, most: int) -> torch.Tensor:
    channels, height, width = parked.shape[1:]
    return like.new_empty(1, min(most, height), width, channels, dtype=parked.dtype).permute(0, 3, 1, 2)
