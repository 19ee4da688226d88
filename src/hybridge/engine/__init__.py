"""THE MATHS: tensors in, tensors out.

Knows models and torch; never the wire, the waiting line or HTTP.
"""

from .engine import Engine
from .loading import is_cached, locate, resolve
from .machine.cpu import fit_threads, threads_of
from .memory.device_memory import failures_named, keep_pieces
from .options import Choice, EngineOptions, granted_memory
from .pixels import to_pixels, to_unit

__all__ = [
    "Choice",
    "Engine",
    "EngineOptions",
    "failures_named",
    "fit_threads",
    "granted_memory",
    "is_cached",
    "keep_pieces",
    "locate",
    "resolve",
    "threads_of",
    "to_pixels",
    "to_unit",
]
