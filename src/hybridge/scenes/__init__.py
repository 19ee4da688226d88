"""Scenes that the starter's pipeline was trained on: how they are drawn, said, and found again in pixels.

:func:`random_scene` makes one, :func:`draw` shows it, :func:`captions` say it in English and Chinese, :func:`read`
understands such a caption, and :func:`check` finds in a picture what a caption asks for.  Nothing here was trained.
"""

from .captions import GRAMMAR, captions, held_out, read, unknown_words
from .checker import Finding, check
from .drawing import draw
from .scene import SIDE, Scene, Thing, is_held_out, random_scene

__all__ = [
    "GRAMMAR",
    "SIDE",
    "Finding",
    "Scene",
    "Thing",
    "captions",
    "check",
    "draw",
    "held_out",
    "is_held_out",
    "random_scene",
    "read",
    "unknown_words",
]
