"""Rounds of ``hybridge bench serve``: every server is started, warmed up, loaded and ended, one at a time, in
turns.

As in :mod:`..vae_bench.runner` nothing is kept between rounds, neighbours in time are compared, and the record
is written after every measurement.  The load is sent by this process, which computes nothing; what the sending
takes of the processor is the same for all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...client.address import Address
from ...engine import resolve
from ...errors import EngineFailure, HybridgeError, RequestError
from ..harness import record as records
from ..harness.environment import version
from ..harness.record import Record
from ..vae_bench.cases import Case
from ..vae_bench.runner import Asker, Progress
from .cases import Load, ServeArguments
from .load_generator import OK, Sample, Shot, closed, deal, open_loop, poisson
from .servers import SERVERS, first_outcome, shot_at_hybridge, started

BENCHMARK = "serve"

#: Libraries that only this benchmark depends on, by what they are called in the environment.
_LIBRARIES = ("litserve", "ray", "uvicorn")


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement."""

    load: Load
    round: int
    rival: str

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.load.title}, round {self.round + 1}: {SERVERS[self.rival].title}"

    @property
    def key(self) -> dict[str, Any]:
        """What tells its entry in the record from others."""
        return {"load": self.load.title, "round": self.round, "rival": self.rival}


def run(
    arguments: ServeArguments, path: Path, *, resume: bool = False, progress: Progress = lambda *_: None
) -> Record:
    """Measures everything that was asked for and is not in the record yet.

    Args:
        arguments: What to measure.  Credentials in ``url`` are used and not kept.
        path: Of the record, JSON.
        resume: Whether to go on with the record that is there.
        progress: Hears what comes next.

    Raises:
        RequestError: for arguments that cannot be; when there is a record and ``resume`` is not set; and when it
            is set and the record is of another environment or other arguments.
        EngineFailure: when the environment cannot be described.
    """
    arguments.check(tuple(SERVERS))
    _check_sizes(arguments)
    kept = asdict(replace(arguments, url=str(Address.parse(arguments.url)) if arguments.url else None))
    before = records.find(path, BENCHMARK, kept, resume=resume)
    turns = list(_turns(arguments))
    with tempfile.TemporaryDirectory(prefix="hybridge-bench-") as folder:
        asker = Asker(Path(folder), arguments.limit_s + (arguments.seconds or 0))
        environment = _environment(arguments, asker)
        if before is not None:
            records.check_alike("environment", before, environment)
        record = before or records.begin(BENCHMARK, environment, kept, measurements=[])
        for done, turn in enumerate(turns):
            if any(turn.key.items() <= entry.items() for entry in record["measurements"]):
                continue
            progress(done, len(turns), turn.title)
            try:
                measured = _measured(turn, arguments, asker)
            except HybridgeError as error:  # of one server, which is a row of the table
                measured = {"missing": str(error)}
            record["measurements"].append({**turn.key, **measured})
            records.write(record, path)
        progress(len(turns), len(turns), "done")
    return record


def send(shots: list[Shot], load: Load, arguments: ServeArguments) -> list[Sample]:
    """One load, closed or open, to a server that is ready."""
    weights = [kind.weight for kind in load.kinds]
    if arguments.rate is not None:
        arrivals = poisson(shots, weights, arguments.rate, arguments.bounds, arguments.seed)
        return open_loop(arrivals, arguments.in_flight, arguments.bounds)
    dealt = deal(weights, arguments.clients_of(load))
    clients = [shot for shot, count in zip(shots, dealt, strict=True) for _ in range(count)]
    return closed(clients, arguments.bounds)


def _turns(arguments: ServeArguments) -> Iterator[Turn]:
    for load in arguments.loads:
        for round_ in range(arguments.repeats):
            for rival in (name for name in SERVERS if name in arguments.rivals):
                yield Turn(load, round_, rival)


def _measured(turn: Turn, arguments: ServeArguments, asker: Asker) -> dict[str, Any]:
    server = SERVERS[turn.rival]
    reason = server.why_missing()
    if reason:
        return {"missing": reason}
    if server.command is None:
        kinds = [{"title": kind.title, "model": kind.model, "size": kind.size} for kind in turn.load.kinds]
        bounds = {"seconds": arguments.seconds, "requests": arguments.bounds.requests, "seed": arguments.seed}
        weights = [kind.weight for kind in turn.load.kinds]
        return asker.ask({"what": "engine", "kinds": kinds, "weights": weights, **bounds})
    if arguments.url is None:
        with started(server, turn.load, arguments) as shots:
            return {"samples": [asdict(sample) for sample in send(shots, turn.load, arguments)]}
    address = Address.parse(arguments.url)
    shots = [shot_at_hybridge(address, kind, arguments) for kind in turn.load.kinds]
    for shot in shots:
        outcome = first_outcome(shot, arguments.limit_s)
        if outcome != OK:
            raise EngineFailure(f"{address} does not answer {shot.kind}", saw=outcome)
    return {"samples": [asdict(sample) for sample in send(shots, turn.load, arguments)]}


def _check_sizes(arguments: ServeArguments) -> None:
    for kind in (kind for load in arguments.loads for kind in load.kinds):
        factor = resolve(kind.model).spatial_factor
        if kind.size <= 0 or kind.size % factor:
            raise RequestError(
                "not a size of this model's pictures", saw=kind.size, expected=f"a multiple of {factor}"
            )


def _environment(arguments: ServeArguments, asker: Asker) -> dict[str, Any]:
    """Of this machine; a server elsewhere has another, which is not known here."""
    case = asdict(Case(arguments.loads[0].kinds[0].model, "decode", 8, "float32"))
    answer = asker.ask({"what": "describe", "cases": {"float32": case}, "rivals": []})
    if "missing" in answer:
        raise EngineFailure("nothing can be measured", saw=answer["missing"])
    described: dict[str, Any] = answer["environment"]
    return described | {library: version(library) for library in _LIBRARIES}
