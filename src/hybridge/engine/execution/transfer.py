"""Rows of parked activations on their way between a device and its host, while the device computes.

A copy goes beside the computing, on a stream of its own.  What it reads or writes on the device is a few rows that
belong to it alone, so that two rules are enough: a copy begins after everything that the device was told to compute
before it, and whoever needs what it brought, or wants to use its rows again, waits for it first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch

from .strips import Rows


class Copies(ABC):
    """Copies of a device, one after the other in the order in which they were begun."""

    @abstractmethod
    def begin(self, source: torch.Tensor, target: torch.Tensor) -> Any:
        """Copies after what the device was told so far; the result is for :meth:`wait`."""

    @abstractmethod
    def wait(self, copy: Any) -> None:
        """What the device is told from now on comes after the copy."""

    @abstractmethod
    def finish(self) -> None:
        """The same for all copies."""


class InTurn(Copies):
    """Copies that are part of what the device computes, for devices of which nothing better is known."""

    def begin(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """At once."""
        target.copy_(source)

    def wait(self, copy: None) -> None:
        """It was made."""

    def finish(self) -> None:
        """They were made."""


class OnStream(Copies):
    """Copies on a CUDA stream of their own, between the device and pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch says nothing of it

    def begin(self, source: torch.Tensor, target: torch.Tensor) -> Any:
        """Returns at once."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def wait(self, copy: Any) -> None:
        """Returns at once; the device waits."""
        torch.cuda.current_stream(self._device).wait_event(copy)

    def finish(self) -> None:
        """Returns at once; the device waits."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


def copies_for(device: torch.device) -> Copies | None:
    """None for a CPU, which reads what is parked where it lies."""
    if device.type == "cpu":
        return None
    return OnStream(device) if device.type == "cuda" else InTurn()


class Fetched(Rows):
    """A parked value: the rows that are asked for next come while the device computes with the last ones.

    Args:
        copies: Of the device.
        parked: (1, C, H, W) on the host.
        like: Of the device to fetch to.
        most: Rows that are asked for at a time.
    """

    def __init__(self, copies: Copies, parked: torch.Tensor, like: torch.Tensor, most: int) -> None:
        self._copies, self._parked = copies, parked
        self.height, self.width = parked.shape[2:]
        self._place = _place(parked, like, most)
        self._coming: tuple[int, int, Any] | None = None  # first row, end, copy

    def pieces(self, start: int, stop: int, following: int) -> Iterator[tuple[int, torch.Tensor]]:
        """One piece, whose memory the rows after it will take."""
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
    """Where rows that are made go on their way to a parked value.

    Args:
        copies: Of the device.
        parked: (1, C, H, W) on the host.
        like: Of the device that they are made on.
        most: Rows that are sent at a time.
    """

    def __init__(self, copies: Copies, parked: torch.Tensor, like: torch.Tensor, most: int) -> None:
        self._copies, self._parked = copies, parked
        self._place = _place(parked, like, most)
        self._going: Any = None

    def send(self, first: int, end: int, made: torch.Tensor) -> None:
        """Rows [first, end), whose memory may be used again at once."""
        if self._going is not None:
            self._copies.wait(self._going)
        rows = self._place[:, :, : end - first]
        rows.copy_(made)
        self._going = self._copies.begin(rows, self._parked[:, :, first:end])


def _place(parked: torch.Tensor, like: torch.Tensor, most: int) -> torch.Tensor:
    channels, height, width = parked.shape[1:]
    return like.new_empty(1, min(most, height), width, channels, dtype=parked.dtype).permute(0, 3, 1, 2)
