"""What cannot run on this machine, and what lives in its place."""

from __future__ import annotations

from .technique import Technique

ROWS: tuple[Technique, ...] = ()
