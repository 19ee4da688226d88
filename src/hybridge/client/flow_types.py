"""What a flow may ask of its driver, and what it is sent: the border between deciding and doing I/O."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import httpx

from ..errors import BadAnswer
from ..protocol import Answer, Request
from .address import Address

T = TypeVar("T")

#: Told about bytes as they go: ``progress("up" or "down", bytes done, bytes in total)``; the total is None where a
#: server does not say it.
Progress = Callable[[Literal["up", "down"], int, "int | None"], None]

#: Does what a server would have done: the fallback.
Local = Callable[[Request], Answer]


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP exchange to make, after waiting ``wait_s`` seconds.

    With ``timeout_s`` the whole response has to be there within so many seconds; without, the driver's own timeout
    holds.  A response that is larger than ``most_bytes`` is not read.  With ``is_parted`` a multipart response is
    not read either: the flow is sent :class:`Opened` and asks for :class:`More`.
    """

    method: str
    url: httpx.URL = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    wait_s: float = 0.0
    timeout_s: float | None = None
    progress: Progress | None = field(default=None, repr=False)
    is_parted: bool = False
    most_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Arrived:
    """A whole response.

    Header names are in lower case.  ``seconds`` is how long it took, None where that is not known yet; ``moved_to``
    is where a redirect leads, without secrets.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float | None
    moved_to: str | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The beginning of a multipart response; its body is still to come."""

    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class More:
    """Asks for the next bytes of what was opened; the flow is sent them, ``b""`` at the end, or the error."""


@dataclass(frozen=True, slots=True)
class Emit:
    """A result that the caller gets before the flow has ended."""

    value: Any


@dataclass(frozen=True, slots=True)
class Compute:
    """Work on this machine, which an async driver must not do on its event loop."""

    work: Local
    request: Request


Step = Call | Compute | More | Emit

#: What came of a call: a response, its beginning, why there is none, or why it was not read.
Outcome = Arrived | Opened | httpx.RequestError | BadAnswer

Flow = Generator[Step, Any, T]


#: Makes the call to a server, given its address and the seconds that are left for it.
Build = Callable[[Address, "float | None"], Call]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a caller wants of one call besides its result.

    Attributes:
        deadline_s: Seconds for all of it, attempts and waits included; None for no end.
        progress: Told about every part of a body as it goes.
    """

    deadline_s: float | None = None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Until:
    """Terms whose time has begun to run: ``ends_at`` is on the fleet's clock."""

    terms: Terms
    ends_at: float | None
