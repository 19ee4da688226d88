"""Small random pipelines of the real classes, with their text encoders and tokenizers, for the tests about text."""

from . import encoders, tokenizers, video_denoisers
from .cases import CASES, Case, index_of, keep_text_alone

__all__ = ["CASES", "Case", "encoders", "index_of", "keep_text_alone", "tokenizers", "video_denoisers"]
