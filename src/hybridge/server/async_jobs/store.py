"""The interface of stores for accepted requests and their results, and the store in memory."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol, TypeVar

from ...errors import HybridgeError, UnknownJob
from ...protocol import HttpResponse, Task

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A request that was accepted for later, without its body.

    Attributes:
        id: The id of the job: 128 random bits; empty until the job is accepted.
        client: Who sent it.
        query: The raw query string.
        headers: ``content-type`` and ``accept``.
        task: The task that the path names; None if it names none.
        model: The model that the path names; None if it names none.
        made_at: When it was accepted, in seconds since 1970.
        request_id: The id of the HTTP request in the logs; unlike ``id`` it does not give access to the job.
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
class StoredJob:
    """A job of an earlier process, and when its result was written, if it was."""

    stored: StoredRequest
    body_bytes: int
    result_bytes: int = 0
    done_at: float | None = None
    status: int | None = None


@dataclass(slots=True)
class StoredResult:
    """A result that is read while it is sent, so that it is never whole in memory.

    Attributes:
        status: Its HTTP status.
        headers: Its HTTP headers, without a length.
        nbytes: Bytes of its body.
        stream: Its body, from the beginning.
        on_close: Called once when it is closed.
    """

    status: int
    headers: dict[str, str]
    nbytes: int
    stream: BinaryIO
    on_close: Callable[[], None] = lambda: None

    def close(self) -> None:
        """Close the stream; may be called again."""
        if not self.stream.closed:
            self.stream.close()
            self.on_close()


def kept_result(response: HttpResponse) -> StoredResult:
    """Return a response in memory as a result; the bytes are shared, not copied."""
    return StoredResult(response.status, response.headers, len(response.body), io.BytesIO(response.body))


class ResultMissing(HybridgeError):
    """A result is missing or damaged, and its request is there to make it again."""


class Store(Protocol):
    """Stores bodies and results.  Its calls may take as long as a disk does.

    All of them raise HybridgeError if the disk fails: StorageFailure if it cannot be written, StorageFull if it
    is full.  The message does not name the job, because whoever knows a job's id may fetch its result.

    Attributes:
        is_durable: Whether its content survives the process.
        stray_bytes: Bytes of files that belong to no job and could not be deleted.
    """

    is_durable: bool

    @property
    def stray_bytes(self) -> int: ...

    def keep(self, stored: StoredRequest, body: bytes) -> None:
        """Store a request; it is safe once this returns."""
        ...

    def body(self, stored: StoredRequest) -> bytes:
        """Return the body of a request."""
        ...

    def finish(self, stored: StoredRequest, response: HttpResponse) -> None:
        """Store a result."""
        ...

    def result(self, stored: StoredRequest) -> StoredResult:
        """Return a result; the caller closes it.

        Raises:
            ResultMissing: when it is missing or damaged while its request is still there.
            Overloaded: when too many are open.
        """
        ...

    def remove(self, stored: StoredRequest) -> None:
        """Delete a request and its result."""
        ...

    def recover(self) -> list[StoredJob]:
        """Return the jobs that earlier processes stored, the oldest first."""
        ...

    def close(self) -> None:
        """Release the store for other processes."""
        ...


class MemoryStore:
    """A store that lasts as long as the process, and touches no disk."""

    is_durable = False
    stray_bytes = 0

    def __init__(self) -> None:
        self._bodies: dict[str, bytes] = {}
        self._responses: dict[str, HttpResponse] = {}
        self._changing = threading.Lock()

    def keep(self, stored: StoredRequest, body: bytes) -> None:
        self._bodies[stored.id] = body

    def body(self, stored: StoredRequest) -> bytes:
        return _there(self._bodies, stored)

    def finish(self, stored: StoredRequest, response: HttpResponse) -> None:
        with self._changing:
            if stored.id in self._bodies:  # else it was removed meanwhile
                self._responses[stored.id] = response

    def result(self, stored: StoredRequest) -> StoredResult:
        return kept_result(_there(self._responses, stored))

    def remove(self, stored: StoredRequest) -> None:
        with self._changing:
            self._bodies.pop(stored.id, None)
            self._responses.pop(stored.id, None)

    def recover(self) -> list[StoredJob]:
        return []

    def close(self) -> None:
        pass


def _there(kept: Mapping[str, Content], stored: StoredRequest) -> Content:
    try:
        return kept[stored.id]
    except KeyError:
        raise UnknownJob("no such job here", saw="a job that was deleted meanwhile") from None
