"""Where accepted requests and their results are kept: in memory, or on disk, where they survive the process.

On disk a job is two files, ``ID.request`` and ``ID.result``, each one line of JSON and then the body as it was
sent; nothing is pickled, and no key is ever among it.  A file is written under another name, synced and renamed,
and the folder synced: it is there as a whole or not at all, whenever the power fails.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ..errors import HybridgeError
from ..protocol import HttpResponse, Task


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was accepted for later, without its body.

    Attributes:
        id: Of the job; 128 random bits.
        client: Who sent it.
        query: The raw query string.
        headers: Those that decide what is meant: ``content-type`` and ``accept``.
        task: What the address says; None where it says nothing.
        model: The same.
        made_at: In seconds since 1970.
        request_id: Of the request, under which its logs have it; unlike ``id`` it opens nothing.
    """

    id: str
    client: str
    query: str
    headers: dict[str, str]
    task: Task | None
    model: str | None
    made_at: float = field(default_factory=time.time)
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A job that was kept from before, and when its result was written, if it was."""

    asked: Asked
    body_bytes: int
    result_bytes: int = 0
    done_at: float | None = None
    status: int | None = None


class Store(Protocol):
    """Keeps bodies and results.  Its calls may take as long as a disk does, except :meth:`recover` once.

    All but :meth:`keep` raise HybridgeError where the disk fails, which says nothing of the job: its id opens it.

    Attributes:
        is_durable: What it keeps survives the process.
    """

    is_durable: bool

    def keep(self, asked: Asked, body: bytes) -> None:
        """Takes a request; it is safe once this returns.

        Raises:
            OSError: when it cannot be kept.
        """
        ...

    def body(self, asked: Asked) -> bytes:
        """The body of a request."""
        ...

    def finish(self, asked: Asked, response: HttpResponse) -> None:
        """Takes a result."""
        ...

    def response(self, asked: Asked) -> HttpResponse:
        """A result."""
        ...

    def remove(self, asked: Asked) -> None:
        """Forgets a request and its result."""
        ...

    def recover(self) -> list[Found]:
        """What was kept before this process began, the oldest first."""
        ...

    def close(self) -> None:
        """Lets others have it."""
        ...


class Memory:
    """A store that lasts as long as the process, and touches no disk."""

    is_durable = False

    def __init__(self) -> None:
        self._bodies: dict[str, bytes] = {}
        self._responses: dict[str, HttpResponse] = {}

    def keep(self, asked: Asked, body: bytes) -> None:
        self._bodies[asked.id] = body

    def body(self, asked: Asked) -> bytes:
        return self._bodies[asked.id]

    def finish(self, asked: Asked, response: HttpResponse) -> None:
        if asked.id in self._bodies:  # else it was removed meanwhile
            self._responses[asked.id] = response

    def response(self, asked: Asked) -> HttpResponse:
        return self._responses[asked.id]

    def remove(self, asked: Asked) -> None:
        self._bodies.pop(asked.id, None)
        self._responses.pop(asked.id, None)

    def recover(self) -> list[Found]:
        return []

    def close(self) -> None:
        pass


class Spool:
    """A store in a folder, which belongs to one process at a time.

    Args:
        folder: Made if it is not there; readable by its owner alone.

    Raises:
        HybridgeError: when it cannot be used.
    """

    is_durable = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            import fcntl
        except ModuleNotFoundError:  # Windows, which cannot sync a folder either
            raise HybridgeError(
                "a spool needs a system with POSIX's file locks",
                saw=os.name,
                hint="without --spool, or the server in WSL or in a container",
            ) from None
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise HybridgeError(
                "another server uses this spool", saw=str(folder), hint="a folder of its own for each server"
            ) from None
        except OSError as error:
            raise HybridgeError("the spool cannot be used", saw=f"{error.strerror}: {folder}") from None

    def keep(self, asked: Asked, body: bytes) -> None:
        self._write(self._path(asked.id, "request"), asdict(asked), body)

    def body(self, asked: Asked) -> bytes:
        with _failing_as("the spool cannot be read"):
            return _read(self._path(asked.id, "request"))[1]

    def finish(self, asked: Asked, response: HttpResponse) -> None:
        with _failing_as("the spool cannot be written"):
            if self._path(asked.id, "request").exists():  # else it was removed meanwhile
                about = {"status": response.status, "headers": response.headers}
                self._write(self._path(asked.id, "result"), about, response.body)

    def response(self, asked: Asked) -> HttpResponse:
        with _failing_as("the spool cannot be read"):
            about, body = _read(self._path(asked.id, "result"))
        return HttpResponse(about["status"], about["headers"], body)

    def remove(self, asked: Asked) -> None:
        with _failing_as("the spool cannot be written"):
            for kind in ("request", "result"):  # in this order: a result without a request is dropped by recover()
                self._path(asked.id, kind).unlink(missing_ok=True)
            self._sync_folder()

    def recover(self) -> list[Found]:
        for half_written in self._folder.glob("*.new"):
            half_written.unlink()
        found = []
        for path in self._folder.glob("*.request"):
            one = Found(Asked(**_read_head(path)), path.stat().st_size)
            result = path.with_suffix(".result")
            if result.exists():
                about = result.stat()
                one = replace(
                    one, result_bytes=about.st_size, done_at=about.st_mtime, status=_read_head(result)["status"]
                )
            found.append(one)
        kept = {one.asked.id for one in found}
        for result in self._folder.glob("*.result"):
            if result.stem not in kept:
                result.unlink()
        return sorted(found, key=lambda one: one.asked.made_at)

    def close(self) -> None:
        self._lock.close()

    def _path(self, job_id: str, kind: str) -> Path:
        return self._folder / f"{job_id}.{kind}"

    def _write(self, path: Path, about: Mapping[str, Any], body: bytes) -> None:
        half_written = path.with_suffix(f"{path.suffix}.new")
        with os.fdopen(os.open(half_written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(json.dumps(about).encode() + b"\n")
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        half_written.replace(path)
        self._sync_folder()

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _failing_as(what: str) -> Iterator[None]:
    """Turns an error of the disk into one of ours, without the file's name: the job's id is part of it."""
    try:
        yield
    except OSError as error:
        raise HybridgeError(what, saw=error.strerror) from None


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    with path.open("rb") as file:
        return json.loads(file.readline()), file.read()


def _read_head(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        head: dict[str, Any] = json.loads(file.readline())
    return head
