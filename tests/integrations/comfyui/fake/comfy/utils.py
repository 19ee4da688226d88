"""The progress bar; tests read ``seen``."""

from __future__ import annotations

from typing import Any

from . import model_management

#: (value, total, preview) of every move.
seen: list[tuple[int, int, Any]] = []


class ProgressBar:
    def __init__(self, total: int, node_id: str | None = None) -> None:
        self.total = total
        self.current = 0

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        model_management.throw_exception_if_processing_interrupted()
        self.total = total or self.total
        self.current = min(value, self.total)
        seen.append((self.current, self.total, preview))

    def update(self, value: int) -> None:
        self.update_absolute(self.current + value)
