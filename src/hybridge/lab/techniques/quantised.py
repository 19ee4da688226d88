"""Weights in fewer bits: torchao, bitsandbytes, quanto, SDNQ, torch.ao."""

from __future__ import annotations

from .technique import Technique

ROWS: tuple[Technique, ...] = ()
