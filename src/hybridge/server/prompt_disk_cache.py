"""Text embeddings on disk, for who asks for them again after the server was restarted; only where it was asked for.

One safetensors file for each answer, readable by its owner alone, under the address that it has in memory (see
:mod:`.prompt_cache`).  No prompt is written.  A file that is damaged, or of another address, is not there: nothing
in this folder can make a request fail.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import re
import stat
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

from ..errors import BadAnswer
from ..protocol import PromptAnswer
from ..protocol.prompt_answers import read_prompt_answer, write_prompt_answer

log = logging.getLogger("hybridge.prompts")

_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")

#: Bytes of answers that wait to be written; one alone may be larger.  What comes beyond that is not kept.
_MOST_WAITING_BYTES = 256 * 2**20

#: Seconds for which the end waits for them.
_PATIENCE_S = 10.0

#: Names in a file's metadata.
_ADDRESS, _CHECKSUM = "address", "checksum"


class PromptDiskCache:
    """Answers in a folder.  Safe to share between threads; a thread of its own writes.

    Args:
        folder: Where they are; made if it is not there.
        most_bytes: Of all files together; those that were used least recently leave.

    Raises:
        OSError: when the folder cannot be made or listed.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._most_bytes = folder, most_bytes
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}  # by name, least recently used first
        found = []
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                about = path.lstat()
                if _NAME.fullmatch(path.name) and stat.S_ISREG(about.st_mode):
                    found.append((about.st_mtime_ns, path.name, about.st_size))
                elif path.suffix == ".part" and stat.S_ISREG(about.st_mode):
                    path.unlink()
        self._sizes = {name: size for _, name, size in sorted(found)}
        self._make_room()
        self._waiting: queue.SimpleQueue[tuple[str, PromptAnswer] | None] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._is_closed = False
        self._writer = threading.Thread(target=self._write_all, name="hybridge-prompt-cache", daemon=True)
        self._writer.start()

    @property
    def held_bytes(self) -> int:
        """Of all files."""
        with self._lock:
            return sum(self._sizes.values())

    def get(self, key: str) -> PromptAnswer | None:
        """The answer of that address, if it is there and whole; takes as long as reading it."""
        name = f"{key}.safetensors"
        with self._lock:
            size = self._sizes.pop(name, None)
            if size is None:
                return None
            self._sizes[name] = size
        path = self._folder / name
        try:
            body = _read(path, self._most_bytes)
            answer = read_prompt_answer(body, most_bytes=len(body))
            metadata = dict(answer.metadata)
            address, checksum = metadata.pop(_ADDRESS, None), metadata.pop(_CHECKSUM, None)
            answer = replace(answer, metadata=metadata)
            if (address, checksum) != (key, _checksum(answer)):
                raise BadAnswer("a file of the prompt cache is damaged")
            os.utime(path)
        except (OSError, BadAnswer) as error:
            log.warning("%s of the prompt cache is left out: %s", name, type(error).__name__)
            self._drop(name)
            return None
        return answer

    def put(self, key: str, answer: PromptAnswer) -> None:
        """Writes an answer, soon and in another thread; where many wait to be written, it is not kept."""
        with self._lock:
            is_too_much = self._waiting_bytes and self._waiting_bytes + answer.nbytes > _MOST_WAITING_BYTES
            if self._is_closed or is_too_much:
                return
            self._waiting_bytes += answer.nbytes
        self._waiting.put((key, answer))

    def close(self) -> None:
        """Takes no more, and returns when all is written, or after some seconds."""
        with self._lock:
            is_first, self._is_closed = not self._is_closed, True
        if is_first:
            self._waiting.put(None)
        self._writer.join(_PATIENCE_S)

    def _write_all(self) -> None:
        while (item := self._waiting.get()) is not None:
            self._try_to_write(*item)
            with self._lock:
                self._waiting_bytes -= item[1].nbytes

    def _try_to_write(self, key: str, answer: PromptAnswer) -> None:
        try:
            self._write(key, answer)
        except OSError as error:  # a full disk, say
            log.warning("the prompt cache cannot be written: %s", error.strerror)
        except Exception:  # the thread is needed for as long as the server runs
            log.exception("an answer cannot be kept in the prompt cache")

    def _write(self, key: str, answer: PromptAnswer) -> None:
        name = f"{key}.safetensors"
        about = {**answer.metadata, _ADDRESS: key, _CHECKSUM: _checksum(answer)}
        body = write_prompt_answer(replace(answer, metadata=about))
        with self._lock:
            if name in self._sizes or len(body) > self._most_bytes:
                return
        descriptor, half = tempfile.mkstemp(".part", dir=self._folder)  # readable by its owner alone
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(body)
            os.replace(half, self._folder / name)  # whoever reads meanwhile finds all of it, or nothing
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(half)
            raise
        with self._lock:
            self._sizes[name] = len(body)
        self._make_room()

    def _make_room(self) -> None:
        with self._lock:
            leaving, held = [], sum(self._sizes.values())
            for name, size in self._sizes.items():
                if held <= self._most_bytes:
                    break
                leaving.append(name)
                held -= size
        for name in leaving:
            self._drop(name)

    def _drop(self, name: str) -> None:
        with self._lock:
            self._sizes.pop(name, None)
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()


def _read(path: Path, most_bytes: int) -> bytes:
    """A plain file's content; links and pipes are none."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > most_bytes:
            raise OSError("no file of the cache")
        return file.read(most_bytes)


def _checksum(answer: PromptAnswer) -> str:
    digest = hashlib.sha256(repr((sorted(answer.layouts.items()), sorted(answer.truncated.items()))).encode())
    for name, tensor in sorted(answer.flat().items()):
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.data)
    return digest.hexdigest()
