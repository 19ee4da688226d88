"""Rounds of ``hybridge bench serve``: every server is started, warmed up, loaded and ended, one at a time, in
turns.

As in :mod:`..vae_bench.runner` nothing is kept between rounds, neighbours in time are compared, and the record
is written after every measurement.  The load is sent by this process, which computes nothing; what the sending
takes of the processor is the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...client.address import Address
from ...engine import resolve
from ...errors import EngineFailure, HybridgeError, RequestError
from ..harness.record import Record
from ..harness.runner import Progress, Turn, described, no_progress, run_benchmark
from ..harness.worker_process import ask
from .cases import Load, ServeArguments
from .load_generator import OK, PreparedRequest, Sample, closed, open_loop, poisson
from .servers import SERVERS, Server, first_outcome, request_to_hybridge, started

BENCHMARK = "serve"

_WORKER = "hybridge.lab.serve_bench.worker"


def run(arguments: ServeArguments, path: Path, *, resume: bool = False, progress: Progress = no_progress) -> Record:
    """Measures everything that was asked for and is not in the record yet.

    Args:
        arguments: What to measure.  Credentials in ``url`` are used and not kept.
        path, resume, progress: See :func:`.run_benchmark`.

    Raises:
        RequestError: for arguments that cannot be.
        HybridgeError: as :func:`.run_benchmark` does.
    """
    arguments.check(tuple(SERVERS))
    _check_sizes(arguments)
    kept = asdict(replace(arguments, url=str(Address.parse(arguments.url)) if arguments.url else None))
    limit_s = arguments.limit_s + (arguments.seconds or 0)

    def environment() -> dict[str, Any]:
        found: dict[str, Any] = described(ask(_WORKER, {"what": "describe"}, limit_s=limit_s))["environment"]
        return found

    def turns(_: Record) -> Iterator[Turn]:
        for load in arguments.loads:
            for number in range(arguments.repeats):
                for server in (server for name, server in SERVERS.items() if name in arguments.rivals):
                    title = f"{load.title}, round {number + 1}: {server.title}"
                    key = {"load": load.title, "round": number, "rival": server.name}
                    yield Turn(title, key, partial(_measured, server, load, arguments, limit_s))

    return run_benchmark(
        BENCHMARK,
        kept,
        path,
        resume=resume,
        progress=progress,
        environment=environment,
        turns=turns,
        measurements=[],
    )


def send(requests: list[PreparedRequest], load: Load, arguments: ServeArguments) -> list[Sample]:
    """One load, closed or open, to a server that is ready."""
    if arguments.rate is None:
        return closed(arguments.dealt(load, requests), arguments.bounds)
    arrivals = list(poisson(requests, load.weights, arguments.rate, arguments.bounds, arguments.seed))
    return open_loop(arrivals, arguments.in_flight, arguments.bounds)


def _measured(server: Server, load: Load, arguments: ServeArguments, limit_s: float) -> dict[str, Any]:
    try:
        reason = server.why_missing()
        if reason:
            return {"missing": reason}
        if server.command is None:
            return _engine_alone(load, arguments, limit_s)
        return {"samples": [asdict(sample) for sample in _samples(server, load, arguments)]}
    except HybridgeError as error:  # of one server, which is a row of the table
        return {"missing": str(error)}


def _engine_alone(load: Load, arguments: ServeArguments, limit_s: float) -> dict[str, Any]:
    bounds = {"seconds": arguments.seconds, "requests": arguments.bounds.requests, "seed": arguments.seed}
    return ask(_WORKER, {"what": "engine", "load": asdict(load), **bounds}, limit_s=limit_s)


def _samples(server: Server, load: Load, arguments: ServeArguments) -> list[Sample]:
    if arguments.url is None:
        with started(server, load, arguments) as requests:
            return send(requests, load, arguments)
    address = Address.parse(arguments.url)
    requests = [request_to_hybridge(address, kind, arguments) for kind in load.kinds]
    for request in requests:
        outcome = first_outcome(request, arguments.limit_s)
        if outcome != OK:
            raise EngineFailure(f"{address} does not answer {request.kind}", saw=outcome)
    return send(requests, load, arguments)


def _check_sizes(arguments: ServeArguments) -> None:
    for kind in (kind for load in arguments.loads for kind in load.kinds):
        factor = resolve(kind.model).spatial_factor
        if kind.size <= 0 or kind.size % factor:
            raise RequestError(
                "not a size of this model's pictures", saw=kind.size, expected=f"a multiple of {factor}"
            )
