"""TEXT: a pipeline's own ``encode_prompt``, with the text encoders alone in memory."""

from .checking import TextLimits
from .engine import Embeddings, TextEngine, Truncation

__all__ = ["Embeddings", "TextEngine", "TextLimits", "Truncation"]
