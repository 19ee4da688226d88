"""What takes the place of a component that a pipeline asks for facts, and that has no weights here."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch


class StandIn:
    """A component's config and dtype, and nothing else; what its config says are its attributes too.

    Args:
        config: What its ``config.json`` holds; empty where there is none.
        dtype: What it is said to be in.
    """

    def __init__(self, config: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.config = SimpleNamespace(**config)
        self.dtype = dtype

    def __getattr__(self, name: str) -> Any:
        if name == "config":  # not there yet
            raise AttributeError(name)
        return getattr(self.config, name)

    def to(self, *args: Any, **options: Any) -> StandIn:
        """Itself: there is nothing to move or to cast."""
        return self
