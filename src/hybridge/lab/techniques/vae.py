"""The VAE: the fixed one, slicing, tiling, the tiny one, the exact engine."""

from __future__ import annotations

from .technique import Technique

ROWS: tuple[Technique, ...] = ()
