"""Tiny autoencoders that diffusers does not have, under the names of their layers in the published files."""

from __future__ import annotations

from .taehv import AutoencoderTAEHV
from .taesd import AutoencoderTAEQI, AutoencoderTAESD

__all__ = ["AutoencoderTAEHV", "AutoencoderTAEQI", "AutoencoderTAESD"]
