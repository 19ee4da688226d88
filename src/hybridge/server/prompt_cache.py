"""A cache of text embeddings in memory, which drops the least recently used first.

The key is a hash of everything that changes a bit: the prompts and options as they were sent, the pictures, and the
facts of the model (its files, precision and device, and the versions of the libraries).  So a hit is what would be
made again (within rounding, where several requests shared a run), and no prompt is kept as text.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping

from ..protocol import PromptAnswer, PromptRequest


def key_of(facts: Mapping[str, str], request: PromptRequest, pictures_hash: str) -> str:
    """Return the key of an answer.

    Args:
        facts: Everything about the model that can change a bit.
        request: The prompts and options.
        pictures_hash: See :attr:`.PromptJob.pictures_hash`.
    """
    told = [dict(facts), dict(request.inputs), request.convention, pictures_hash]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


class PromptCache:
    """The cache; several threads may use it.

    Args:
        most_bytes: Limit of all answers together; 0 keeps none.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held_bytes = 0
        self._answers: OrderedDict[str, PromptAnswer] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes of the answers that are kept."""
        return self._held_bytes

    def get(self, key: str) -> PromptAnswer | None:
        """Return the answer of a key; None if it is not kept."""
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
            return self._answers.get(key)

    def put(self, key: str, answer: PromptAnswer) -> None:
        """Keep an answer and drop others for it, unless it is larger than the whole cache."""
        with self._lock:
            if answer.nbytes > self._most_bytes or key in self._answers:
                return
            self._answers[key] = answer
            self._held_bytes += answer.nbytes
            while self._held_bytes > self._most_bytes:
                _, gone = self._answers.popitem(last=False)
                self._held_bytes -= gone.nbytes
