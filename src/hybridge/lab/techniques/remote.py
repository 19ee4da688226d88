"""Parts that a hybridge server runs."""

from __future__ import annotations

from .technique import Technique

ROWS: tuple[Technique, ...] = ()
