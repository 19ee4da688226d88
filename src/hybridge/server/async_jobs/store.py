"""What keeps accepted requests and their results, and the store that keeps them in memory."""

from __future__ import annotations

import io
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
        id: Of the job; 128 random bits.  Empty until the job is accepted.
        client: Who sent it.
        query: The raw query string.
        headers: Those that decide what is meant: ``content-type`` and ``accept``.
        task: What the address says; None where it says nothing.
        model: What the address says; None where it says nothing.
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
class StoredJob:
    """A job that was kept from before, and when its result was written, if it was."""

    stored: StoredRequest
    body_bytes: int
    result_bytes: int = 0
    done_at: float | None = None
    status: int | None = None


@dataclass(slots=True)
class StoredResult:
    """A result that is read while it is sent, so that it takes no memory for each client that fetches it.

    Attributes:
        status: Its HTTP status.
        headers: Its HTTP headers, without a length.
        nbytes: Of its body.
        stream: Its body, from the beginning.
        on_close: Called once when it is closed.
    """

    status: int
    headers: dict[str, str]
    nbytes: int
    stream: BinaryIO
    on_close: Callable[[], None] = lambda: None

    def close(self) -> None:
        """Must be called in the end; may be called again."""
        if not self.stream.closed:
            self.stream.close()
            self.on_close()


def kept_result(response: HttpResponse) -> StoredResult:
    """A response in memory as a result; the bytes are shared, not copied."""
    return StoredResult(response.status, response.headers, len(response.body), io.BytesIO(response.body))


class ResultMissing(HybridgeError):
    """A result is missing or damaged, and its request is there to make it again."""


class Store(Protocol):
    """Keeps bodies and results.  Its calls may take as long as a disk does.

    All of them raise HybridgeError where the disk fails: StorageFailure if it cannot be written, StorageFull if it
    is full.  The message does not name the job, because whoever knows a job's id may fetch its result.

    Attributes:
        is_durable: What it keeps survives the process.
        stray_bytes: Of files that belong to no job and could not be deleted.
    """

    is_durable: bool

    @property
    def stray_bytes(self) -> int: ...

    def keep(self, stored: StoredRequest, body: bytes) -> None:
        """Takes a request; it is safe once this returns."""
        ...

    def body(self, stored: StoredRequest) -> bytes:
        """The body of a request."""
        ...

    def finish(self, stored: StoredRequest, response: HttpResponse) -> None:
        """Takes a result."""
        ...

    def result(self, stored: StoredRequest) -> StoredResult:
        """A result; it must be closed.

        Raises:
            ResultMissing: when it is missing or damaged while its request is still there.
            Overloaded: when too many are open.
        """
        ...

    def remove(self, stored: StoredRequest) -> None:
        """Forgets a request and its result."""
        ...

    def recover(self) -> list[StoredJob]:
        """What was kept before this process began, the oldest first."""
        ...

    def close(self) -> None:
        """Lets others have it."""
        ...


class MemoryStore:
    """A store that lasts as long as the process, and touches no disk."""

    is_durable = False
    stray_bytes = 0

    def __init__(self) -> None:
        self._bodies: dict[str, bytes] = {}
        self._responses: dict[str, HttpResponse] = {}

    def keep(self, stored: StoredRequest, body: bytes) -> None:
        self._bodies[stored.id] = body

    def body(self, stored: StoredRequest) -> bytes:
        return _there(self._bodies, stored)

    def finish(self, stored: StoredRequest, response: HttpResponse) -> None:
        if stored.id in self._bodies:  # else it was removed meanwhile
            self._responses[stored.id] = response

    def result(self, stored: StoredRequest) -> StoredResult:
        return kept_result(_there(self._responses, stored))

    def remove(self, stored: StoredRequest) -> None:
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
