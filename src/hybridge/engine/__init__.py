"""The numerical part: it takes tensors and gives tensors.

It knows models and torch, but not the wire format, the queue or HTTP.
"""

from .engine import Engine
from .loading import is_cached, locate, resolve
from .machine.cpu import limit_threads, threads_of
from .memory.device_memory import keep_pieces, map_torch_errors
from .options import Choice, EngineOptions, granted_memory, offload_memory
from .pixels import frames_of, to_pixels, to_unit

__all__ = [
    "Choice",
    "Engine",
    "EngineOptions",
    "frames_of",
    "granted_memory",
    "is_cached",
    "keep_pieces",
    "limit_threads",
    "locate",
    "map_torch_errors",
    "offload_memory",
    "resolve",
    "threads_of",
    "to_pixels",
    "to_unit",
]
