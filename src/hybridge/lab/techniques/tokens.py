"""Fewer tokens: ToMe, and T-GATE, which stops looking at the prompt."""

from __future__ import annotations

from .technique import Technique

ROWS: tuple[Technique, ...] = ()
