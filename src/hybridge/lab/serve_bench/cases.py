"""What ``hybridge bench serve`` is asked: the arguments of a run, and the loads that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ...errors import RequestError
from ..harness.names import check_known, check_number
from .load_generator import Bounds, deal

T = TypeVar("T")

#: Names of media types, as the command line has them.
FORMATS = ("png", "jpeg", "webp")

#: More connections than this are a test of the operating system.
MOST_CLIENTS = 4096

#: Side in pixels; latents for a larger one are no body that a server takes.
LONGEST_SIDE = 16_384

#: Samples of one load that are kept in memory and in the record.
MOST_REQUESTS = 100_000


@dataclass(frozen=True, slots=True)
class Kind:
    """Pictures of one model and size.

    Attributes:
        model: A name of the catalogue, or NAME=PATH_OR_REPO[:subfolder].
        size: Side in pixels.
        weight: Its share of the load.
    """

    model: str
    size: int
    weight: int = 1

    @property
    def name(self) -> str:
        """Of the model, as it stands in URLs."""
        return self.model.partition("=")[0]

    @property
    def title(self) -> str:
        """For people and records."""
        return f"{self.name} {self.size}²"


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent within one measurement."""

    kinds: tuple[Kind, ...]

    @property
    def weights(self) -> list[int]:
        """Of its kinds."""
        return [kind.weight for kind in self.kinds]

    @property
    def title(self) -> str:
        """For people and records."""
        if len(self.kinds) == 1:
            return self.kinds[0].title
        return ", ".join(f"{kind.title} × {kind.weight}" for kind in self.kinds)


@dataclass(frozen=True, slots=True)
class ServeArguments:
    """A whole run.  Two runs with equal arguments measure the same.

    Attributes:
        url: Of a server that runs already, without credentials; None to start one.
        loads: Measured one after the other.
        clients: Of a closed loop; None for eight, or for the sum of a mix's weights.
        rate: Of an open loop: requests in a second; None for a closed one.
        in_flight: Of an open loop: how many may be under way.
        seconds, requests: Of one measurement; None for no bound.
        rivals: Names, in the order in which they take turns.
        repeats: Rounds: how often every server is started anew.
        limit_s: Seconds that one request, or the start of a server, may take.
        seed: Of latents and arrivals.
    """

    url: str | None
    loads: tuple[Load, ...]
    clients: int | None
    rate: float | None
    in_flight: int
    seconds: float | None
    requests: int | None
    rivals: tuple[str, ...]
    picture_format: str
    repeats: int
    limit_s: float
    seed: int = 0

    @property
    def bounds(self) -> Bounds:
        """Of one measurement."""
        return Bounds(self.seconds, self.requests or MOST_REQUESTS, self.limit_s)

    def clients_of(self, load: Load) -> int:
        """How many clients send a load."""
        if self.clients is not None:
            return self.clients
        return 8 if len(load.kinds) == 1 else sum(load.weights)

    def dealt(self, load: Load, by_kind: Sequence[T]) -> list[T]:
        """For each client of a load what it sends, from what is sent of each kind."""
        numbers = deal(load.weights, self.clients_of(load))
        return [one for one, number in zip(by_kind, numbers, strict=True) for _ in range(number)]

    def check(self, known_rivals: tuple[str, ...]) -> None:
        """Raises :class:`RequestError` for what cannot be asked, before anything is started."""
        check_known("rival", self.rivals, known_rivals)
        check_known("format", (self.picture_format,), FORMATS)
        if self.url and self.rivals != ("hybridge",):
            raise RequestError(
                "a server elsewhere has no rivals here", saw=",".join(self.rivals), hint="--rivals hybridge"
            )
        if self.rate is not None and self.clients is not None:
            raise RequestError(
                "an open loop has no clients", saw=f"--clients {self.clients} and --open {self.rate:g}"
            )
        if self.seconds is None and self.requests is None:
            raise RequestError("a load without an end", expected="--seconds or --requests")
        most = [self.clients_of(load) for load in self.loads]
        numbers: dict[str, tuple[Any, float]] = {
            "seconds": (self.seconds, 86_400),
            "requests": (self.requests, MOST_REQUESTS),
            "clients": (max(most, default=None), MOST_CLIENTS),
            "pixels": (max((kind.size for load in self.loads for kind in load.kinds), default=None), LONGEST_SIDE),
            "rate": (self.rate, MOST_REQUESTS),
            "requests in flight": (self.in_flight, MOST_CLIENTS),
            "repeats": (self.repeats, 1000),
            "limit": (self.limit_s, 86_400),
        }
        for name, (value, highest) in numbers.items():
            check_number(name, value, highest)
        if self.rate and self.requests is None and self.rate * (self.seconds or 0) > MOST_REQUESTS:
            raise RequestError(
                "too many requests", saw=f"{self.rate:g}/s for {self.seconds:g} s", expected=f"{MOST_REQUESTS}"
            )
        for load, clients in zip(self.loads, most, strict=True):
            if self.rate is None and clients < len(load.kinds):
                raise RequestError(
                    "fewer clients than kinds of pictures", saw=clients, expected=f"at least {len(load.kinds)}"
                )


def loads_of(model: str, sizes: tuple[int, ...], mix: str | None) -> tuple[Load, ...]:
    """A load for each size; or one, if there is a mix: ``[MODEL@]SIZE:WEIGHT``, with commas between.

    Raises:
        RequestError: for a mix that cannot be read.
    """
    if mix is None:
        return tuple(Load((Kind(model, size),)) for size in sizes)
    return (Load(tuple(_kind_of(part.strip(), model) for part in mix.split(","))),)


def _kind_of(part: str, model: str) -> Kind:
    named, _, rest = part.rpartition("@")
    size, separator, weight = rest.partition(":")
    try:
        kind = Kind(named or model, int(size), int(weight) if separator else 1)
    except ValueError:
        kind = Kind(model, 0, 0)
    if kind.size <= 0 or not 0 < kind.weight <= MOST_CLIENTS:
        raise RequestError("not a mix", saw=repr(part), expected="[MODEL@]SIZE:WEIGHT", hint="256:16,2048:1")
    return kind
