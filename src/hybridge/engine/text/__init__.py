"""TEXT: a pipeline's own ``encode_prompt``, with the text encoders alone in memory."""

from .checking import TextLimits
from .embeddings import Embeddings, Truncation
from .engine import TextEngine

__all__ = ["Embeddings", "TextEngine", "TextLimits", "Truncation"]
