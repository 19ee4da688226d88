"""Attention: which kernel computes it."""

from __future__ import annotations

from .technique import Technique

ROWS: tuple[Technique, ...] = ()
