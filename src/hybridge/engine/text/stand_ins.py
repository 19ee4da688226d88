"""What takes the place of a component that a pipeline asks for facts, and that has no weights here."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch


class StandIn:
    """A component's config and dtype, and nothing else.

    Args:
        config: What its ``config.json`` holds; empty where there is none.
        dtype: What it is said to be in.
    """

    def __init__(self, config: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.config = SimpleNamespace(**config)
        self.dtype = dtype
