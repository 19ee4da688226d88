"""Rounds: every rival in a process of its own, one at a time, taking turns.

A round starts, warms, times and ends one process for the roof and one for every rival, one after the other; the
next round starts them all again.  Processes are not kept between rounds, for two reasons.  A kept one holds its
weights and whatever its allocator and libraries keep, so every rival would run beside the memory of all others.
And how a process happens to lie in memory stays with it: samples from one process agree with each other better than
with those of the next, so the spread over fresh ones is the honest one.  The price is a start and a first call each
time.  Neighbours in time are compared, so a machine that slows down slows all of them.

The process that runs this touches no device.  It writes the record after every measurement.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ...engine import locate, resolve
from ..harness.record import Record
from ..harness.runner import Progress, Turn, described, no_progress, run_benchmark
from ..harness.typed import parse
from ..harness.worker_process import ask
from .cases import Arguments, Case
from .record import VaeRecord
from .rivals import RIVALS, Rival
from .subject import reference_dtype

BENCHMARK = "vae"


def run(arguments: Arguments, path: Path, *, resume: bool = False, progress: Progress = no_progress) -> Record:
    """Measures everything that was asked for and is not in the record yet.

    Args:
        arguments: What to measure.
        path, resume, progress: See :func:`.run_benchmark`.

    Raises:
        RequestError: for arguments that cannot be.
        ModelUnavailable: when real weights were asked for and cannot be had.
        HybridgeError: as :func:`.run_benchmark` does.
    """
    spec = resolve(arguments.model)
    arguments.check(tuple(RIVALS), spec.spatial_factor, spec.frames)
    with tempfile.TemporaryDirectory(prefix="hybridge-bench-") as folder:
        worker = VaeWorker(Path(folder), arguments.limit_s)

        def environment() -> dict[str, Any]:
            if arguments.weights:
                locate(spec)
            return worker.describe(arguments)

        return run_benchmark(
            BENCHMARK,
            asdict(arguments),
            path,
            resume=resume,
            progress=progress,
            environment=environment,
            turns=lambda record: _turns(arguments, record, worker),
            model={"name": spec.name, "weights": spec.source if arguments.weights else "random"},
            roofs=[],
            measurements=[],
        )


def _turns(arguments: Arguments, record: Record, worker: VaeWorker) -> Iterator[Turn]:
    rivals = [rival for name, rival in RIVALS.items() if name in arguments.rivals]
    spec = resolve(arguments.model)
    for case in arguments.cases():
        about = {"task": case.task, "size": case.size, "dtype": case.dtype}
        if case.frames > 1:
            about["frames"] = case.frames
        for number in range(arguments.repeats):
            title, key = f"{case.title}, round {number + 1}", {**about, "round": number}
            if not spec.frames.has_axis:
                yield Turn(f"{title}: the roof", key, partial(worker.ask, "roof", case), "roofs")
            for rival in rivals:
                measure = partial(_measured, case, number, rival, arguments, record, worker)
                yield Turn(f"{title}: {rival.title}", {**key, "rival": rival.name}, measure)


def _measured(
    case: Case, number: int, rival: Rival, arguments: Arguments, record: Record, worker: VaeWorker
) -> dict[str, Any]:
    read = parse(VaeRecord, record)
    # What could not be done in one round is not tried again in the next.
    missing = worker.missing.get((rival.name, case.dtype)) or read.result(case, rival.name).missing
    if missing:
        return {"missing": missing}
    budget_bytes = arguments.budget_bytes
    if rival.budget_of is not None:
        peaks = (entry.peak_bytes for entry in read.entries(case, rival.budget_of))
        budget_bytes = next((peak for peak in peaks if peak), None)
        if budget_bytes is None:
            return {"missing": f"its budget is the peak of {rival.budget_of}, which this run has not measured"}
    judges = number == 0
    job = {"rival": rival.name, "budget_bytes": budget_bytes, "tile_pixels": arguments.tile_pixels}
    reference, why_none = worker.reference(case) if judges else (None, None)
    answer = worker.ask("measure", case, judges=judges, reference=reference, **job)
    return answer if why_none is None or "missing" in answer else {**answer, "no_reference": why_none}


class VaeWorker:
    """Starts processes, one at a time, and keeps the reference pictures between them.

    Args:
        folder: For references, and for what torch.compile would leave behind elsewhere.
        limit_s: Seconds that one process may take.

    Attributes:
        missing: Why a rival cannot take part, by its name and the dtype; known once :meth:`describe` was called.
    """

    def __init__(self, folder: Path, limit_s: float) -> None:
        self._folder = folder
        self._limit_s = limit_s
        self._references: dict[str, tuple[str | None, str | None]] = {}
        self.missing: dict[tuple[str, str], str] = {}

    def describe(self, arguments: Arguments) -> dict[str, Any]:
        """The environment; also asks every rival whether it can take part."""
        cases = {case.dtype: asdict(case) for case in arguments.cases()}
        answer = described(self.ask("describe", cases=cases, rivals=arguments.rivals))
        for dtype, reasons in answer["absent"].items():
            self.missing |= {(rival, dtype): reason for rival, reason in reasons.items()}
        environment: dict[str, Any] = answer["environment"]
        return environment

    def reference(self, case: Case) -> tuple[str | None, str | None]:
        """(the file with the untiled picture, why there is none); half precisions have inputs of their own."""
        name = f"{case.task}-{case.size}-{case.frames}-{case.dtype}-{reference_dtype(case)}".replace("torch.", "")
        if name not in self._references:
            path = str(self._folder / f"{name}.safetensors")
            answer = self.ask("reference", case, path=path)
            self._references[name] = (None, answer["missing"]) if "missing" in answer else (path, None)
        return self._references[name]

    def ask(self, what: str, case: Case | None = None, **job: Any) -> dict[str, Any]:
        """What the process answered: what it measured, or ``{"missing": reason}``."""
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(self._folder / "inductor")}
        whole = {"what": what, **({"case": asdict(case)} if case else {}), **job}
        return ask("hybridge.lab.vae_bench.worker", whole, limit_s=self._limit_s, variables=caches)
