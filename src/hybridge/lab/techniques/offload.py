"""Weights that wait elsewhere: on the CPU, or on a disk."""

from __future__ import annotations

from .technique import Technique

ROWS: tuple[Technique, ...] = ()
