"""One component at a time: text encoders, UNet and VAE are never there together."""

from __future__ import annotations

from .technique import Technique

ROWS: tuple[Technique, ...] = ()
