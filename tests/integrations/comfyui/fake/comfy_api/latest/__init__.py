"""What the pack uses of ComfyUI's V3 interface, with its arguments: a wrong name is a TypeError, as there."""

from __future__ import annotations

from abc import ABC, abstractmethod

from . import io

__all__ = ["ComfyExtension", "io"]


class ComfyExtension(ABC):
    async def on_load(self) -> None:  # noqa: B027 - as it is there
        """Does nothing."""

    @abstractmethod
    async def get_node_list(self) -> list[type[io.ComfyNode]]: ...
