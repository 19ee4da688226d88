"""What a replica serves, and how it makes its backend on its own machine."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from ..engine import EngineOptions, granted_memory, keep_pieces, limit_threads
from ..errors import HybridgeError
from ..models import ModelSpec, TextSpec
from ..server.local_backend import LocalBackend


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """What every replica serves; it travels to their machines.

    Attributes:
        vaes: VAEs.
        texts: Text encoders.
        options: How models are loaded.
        memory_bytes: Limit of weights and running plans in each; None for what its process is granted.
        prompt_cache_bytes: Size of the cache of embeddings in each.
        lora_folder: Folder of LoRAs, which every machine must have.
        offload_bytes: Host memory in each for text encoders that left a GPU to make room.
        preload: Whether to load all models before the first job.
    """

    vaes: tuple[ModelSpec, ...]
    texts: tuple[TextSpec, ...]
    options: EngineOptions
    memory_bytes: int | None = None
    prompt_cache_bytes: int = 0
    lora_folder: Path | None = None
    offload_bytes: int = 0
    preload: bool = False

    def make_backend(self) -> LocalBackend:
        """Return a backend in this process.  What cannot be loaded has its reason in ``info()``."""
        keep_pieces()
        limit_threads()
        backend = LocalBackend(
            {},
            cold=self.vaes,
            texts=self.texts,
            prompt_cache_bytes=self.prompt_cache_bytes,
            lora_folder=self.lora_folder,
            offload_bytes=self.offload_bytes,
            options=self.options,
            memory_bytes=self.memory_bytes or granted_memory(self.options.device),
        )
        if self.preload:
            for info in backend.info():
                with contextlib.suppress(HybridgeError):
                    backend.preload(info.part)
        return backend
