"""The refiner: as an ensemble of experts, and as image to image."""

from __future__ import annotations

from .technique import Technique

ROWS: tuple[Technique, ...] = ()
