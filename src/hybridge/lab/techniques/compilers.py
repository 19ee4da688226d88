"""Compilers of the UNet: torch.compile, Stable Fast, OneDiff."""

from __future__ import annotations

from .technique import Technique

ROWS: tuple[Technique, ...] = ()
