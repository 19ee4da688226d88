"""What a loaded model was made from: the revision of its repository and the SHA-256 of its weights.

A file is read once, in a thread beside the work, because the largest have gigabytes.  Its hash is kept for its
path, size and time of change.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from ..errors import HybridgeError
from ..models import ModelSpec
from .hub import snapshot
from .loading import is_path
from .weights import read_headers

#: Bytes that are read at a time; hashing them releases the interpreter's lock.
_PIECE_BYTES = 4 * 2**20

#: Longest that somebody waits for a hash.
_PATIENCE_S = 600.0

#: Libraries that decide about the last bits of a picture.
_LIBRARIES = ("torch", "diffusers")


class Identity:
    """The files of a model.

    Args:
        files: The weights, in the order in which they are loaded.
        revision: The commit of a snapshot of the hub; None for other folders.
    """

    def __init__(self, files: Sequence[Path], revision: str | None) -> None:
        self.revision = revision
        self._files = tuple(files)
        self._hash: str | None = None
        self._is_read = threading.Event()
        threading.Thread(target=self._read, name="hybridge-hash", daemon=True).start()

    @classmethod
    def of_model(cls, spec: ModelSpec) -> Identity:
        """Return the identity of a model that was loaded, without files if they are gone; nothing is downloaded."""
        from huggingface_hub import try_to_load_from_cache

        source, subfolder = Path(spec.source), spec.subfolder or ""
        try:
            if source.exists() or is_path(spec.source):
                where = source if source.is_file() else snapshot(source) / subfolder
            else:
                config = try_to_load_from_cache(spec.source, f"{subfolder}/config.json".lstrip("/"))
                where = Path(config).parent if isinstance(config, str) else source
            files = read_headers(spec.name, where).files
        except (OSError, HybridgeError):
            return cls((), None)
        # The folder of a snapshot is named after its commit.
        parents = [parent for path in files[:1] for parent in path.parents if parent.parent.name == "snapshots"]
        return cls(files, parents[0].name if parents else None)

    def weights_hash(self, *, wait: bool = False) -> str | None:
        """Return ``sha256:`` and the hash of one file, in hexadecimal; of several, of their hashes in this order.

        None while it is computed, unless ``wait`` is set, and where a file cannot be read.
        """
        if wait:
            self._is_read.wait(_PATIENCE_S)
        return self._hash

    def _read(self) -> None:
        try:
            digests = [_digest(path, *_stamp(path)) for path in self._files]
        except OSError:
            digests = []
        if len(digests) == 1:
            self._hash = f"sha256:{digests[0]}"
        elif digests:
            self._hash = "sha256:" + hashlib.sha256("\n".join(digests).encode()).hexdigest()
        self._is_read.set()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=256)
def _digest(path: Path, _size: int, _changed: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that compute."""
    return {name: version(name) for name in _LIBRARIES}
