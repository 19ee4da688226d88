"""Arguments of the call: fewer steps, guidance that ends early."""

from __future__ import annotations

from .technique import Technique

ROWS: tuple[Technique, ...] = ()
