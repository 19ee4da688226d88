"""Precision: half types, TF32, FP8 storage."""

from __future__ import annotations

from .technique import Technique

ROWS: tuple[Technique, ...] = ()
