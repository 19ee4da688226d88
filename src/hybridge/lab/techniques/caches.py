"""Caches between steps: DeepCache, and the hooks of diffusers."""

from __future__ import annotations

from .technique import Technique

ROWS: tuple[Technique, ...] = ()
