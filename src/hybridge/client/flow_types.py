"""The steps that a flow asks its driver to take, and their outcomes: the interface between logic and I/O."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import httpx

from ..errors import BadAnswer
from ..protocol import Answer, Request
from .address import Address

T = TypeVar("T")

#: Called during transfers: ``progress("up" or "down", bytes done, bytes in total)``; the total is None if a server
#: does not say it.
Progress = Callable[[Literal["up", "down"], int, "int | None"], None]

#: Responses that a flow reads while they arrive: a multipart response, a picture or video file.
Opens = Literal["parts", "file"]

#: Called with the frames of a video that have arrived, and their number if the server says it.
FrameProgress = Callable[[int, "int | None"], None]

#: The fallback: a function that answers in place of a server.
Local = Callable[[Request], Answer]


@dataclass(frozen=True, slots=True)
class Hedge:
    """What to do if a call is not answered within ``after_s`` seconds: ``call`` returns another one, or None."""

    after_s: float
    call: Callable[[], Call | None]


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP exchange to make, after waiting ``wait_s`` seconds.

    With ``timeout_s`` the whole response has to arrive within that many seconds; otherwise the driver's own timeout
    applies.  A response that is larger than ``most_bytes`` is not read.  A response of the kind that ``opens``
    names is not read either: the flow is sent :class:`Opened` and asks for :class:`More`.  For a call with a
    ``hedge`` the flow is sent :class:`Raced`.
    """

    method: str
    url: httpx.URL = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    wait_s: float = 0.0
    timeout_s: float | None = None
    progress: Progress | None = field(default=None, repr=False)
    opens: Opens | None = None
    most_bytes: int | None = None
    hedge: Hedge | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Arrived:
    """A complete response.

    Header names are in lower case.  ``seconds`` is the time that it took, None if not known yet; ``moved_to`` is
    the target of a redirect, without secrets.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float | None
    moved_to: str | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The head of a response whose body the flow reads; it has not arrived yet."""

    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class More:
    """Asks for the next bytes of an opened response; the flow is sent these, ``b""`` at the end, or the error."""


@dataclass(frozen=True, slots=True)
class Emit:
    """A result that the caller gets before the flow ends."""

    value: Any


@dataclass(frozen=True, slots=True)
class Compute:
    """Local work, which an async driver must not do on its event loop."""

    work: Local
    request: Request


Step = Call | Compute | More | Emit

#: The outcome of a call: a response, the reason for having none, or the reason for not reading it.
Settled = Arrived | httpx.RequestError | BadAnswer

#: Also that of a call that ``opens`` its response.
Outcome = Settled | Opened


@dataclass(frozen=True, slots=True)
class Raced:
    """The outcomes of a call and of its hedge; None for one that was not made or was cancelled."""

    first: Settled | None
    second: Settled | None = None


Flow = Generator[Step, Any, T]


#: Builds the call to a server from the server's address and the seconds that are left.
Build = Callable[[Address, "float | None"], Call]


@dataclass(frozen=True, slots=True)
class Terms:
    """A caller's conditions for one call.

    Attributes:
        deadline_s: Seconds for the whole call, attempts and waits included; None for no limit.
        progress: Called for every part of a body that is transferred.
    """

    deadline_s: float | None = None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Until:
    """Terms of a call that has begun: ``ends_at`` is on the fleet's clock."""

    terms: Terms
    ends_at: float | None
