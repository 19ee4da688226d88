"""A study, configuration by configuration: every one in a fresh process, one at a time.

On a CPU these are forks of one process that has loaded the libraries and done nothing else; see
:class:`.ForkServer`.

Nothing that a technique leaves behind (patched classes, process-wide flags, what an allocator keeps) reaches
the next.  The process that runs this touches no device.  It writes the record after every configuration, so a
run that is ended loses the one that it was at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...client.address import Address
from ...client.profiles import is_name
from ...errors import RequestError
from ..harness import record as records
from ..harness.record import Record
from ..harness.runner import Progress, Turn, described, no_progress, take_turns
from ..harness.worker_process import ForkServer, ask
from ..techniques import stack
from ..techniques.catalogue import named
from . import outcomes
from .arguments import OFFLINE, Arguments, Configuration

BENCHMARK = "study"

#: Name of the record in a study's folder.
RECORD = "study.json"

_WORKER = "hybridge.lab.studies.worker"


def run(arguments: Arguments, path: Path, *, resume: bool = False, progress: Progress = no_progress) -> Record:
    """Measures every configuration that was asked for and is not in the record yet.

    Args:
        arguments: What to measure.  Credentials in ``server`` are used and not kept.
        path: Of the record; pictures are written beside it.
        resume: Whether to go on with the record that is there.
        progress: Hears what comes next.

    Raises:
        RequestError: for arguments that cannot be; when there is a record and ``resume`` is not set; and when it
            is set and the record is of another environment or other arguments.
        EngineFailure: when nothing can be measured: no such device, or a pipeline that cannot be loaded.
        HybridgeError: when the disk takes no more; what was measured is kept.
    """
    arguments.check()
    for configuration in arguments.configurations:
        stack.check(named(configuration.techniques))
    before = records.find(path, BENCHMARK, resume=resume)
    if before is not None:
        _check_asked(before, arguments)
    worker = StudyWorker(arguments, path)
    try:
        progress(0, len(arguments.configurations), "looking at the pipeline")
        seen = worker.describe()
        record = before or records.begin(
            BENCHMARK,
            seen["environment"],
            seen["arguments"],
            pipeline=seen["pipeline"],
            not_scored=seen["not_scored"],
            measurements=[],
        )
        for part in ("arguments", "environment"):
            records.check_alike(part, record, seen[part])
        take_turns(record, path, _turns(record, worker, seen["missing"]), progress)
    finally:
        worker.tidy()
    return record


def arguments_of(path: Path, server: str | None = None) -> Arguments:
    """What the study was asked that a record is of.

    Args:
        path: Of the record.
        server: Its server once more, with credentials, which no record keeps.

    Raises:
        RequestError: when there is none.
    """
    if not path.is_file():
        raise RequestError("there is no record to go on with", saw=path)
    kept = Arguments.of(records.read(path, BENCHMARK)["arguments"])
    return replace(kept, server=server or kept.server)


def _check_asked(record: Record, arguments: Arguments) -> None:
    """As far as can be said before anything is loaded: what was left open then is compared later."""
    kept = {**asdict(arguments), "server": _bare(arguments.server)}
    said = {key: value for key, value in kept.items() if value not in ("auto", None)}
    records.check_alike("arguments", record, {**record["arguments"], **said})


def _bare(server: str | None) -> str | None:
    """An address without its credentials, or the name of a profile."""
    return str(Address.parse(server)) if server and not is_name(server) else server


def _turns(record: Record, worker: StudyWorker, absent: dict[str, Any]) -> Iterator[Turn]:
    for one in Arguments.of(record["arguments"]).configurations:
        known = [absent[name] for name in one.techniques if name in absent]
        measure = partial(outcomes.together, known) if known else partial(worker.measure, one)
        yield Turn(one.name, {"configuration": one.name}, measure, is_known=bool(known))


class StudyWorker:
    """Starts processes, one at a time, each with a folder of its own that goes with it.

    The folders lie beside the record: where techniques put weights on a disk, it should be one, and where temporary
    files go is often memory.
    """

    def __init__(self, arguments: Arguments, path: Path) -> None:
        self._server = arguments.server
        self._asked = replace(arguments, server=_bare(arguments.server))
        self._path = path
        self._work = path.parent / "work"
        self._not_scored: list[str] = []
        self._variables = {"HF_HUB_OFFLINE": "1"} if arguments.pipeline in OFFLINE else {}
        self._fork_server = ForkServer(_WORKER, self._work, self._variables)
        self.tidy()  # what a run left that was killed

    def describe(self) -> dict[str, Any]:
        """See :func:`.worker.describe`; takes as long as fetching the pipeline does."""
        seen = described(self._ask({"what": "describe"}, None))
        self._asked = Arguments.of(seen["arguments"])
        self._not_scored = list(seen["not_scored"])
        return seen

    def measure(self, configuration: Configuration) -> dict[str, Any]:
        """Its entry for the record.

        Raises:
            HybridgeError: when its pictures cannot be written.
        """
        job = {"what": "measure", "configuration": configuration.name, "not_scored": self._not_scored}
        entry = self._ask(job, self._asked.limit_s)
        if "unwritten" in entry:
            raise records.no_room(self._path, entry["unwritten"])
        return outcomes.failed(configuration.techniques, entry["missing"]) if "missing" in entry else entry

    def tidy(self) -> None:
        """Takes away what lies beside the record while it is measured, and ends what was started for it."""
        self._fork_server.close()
        shutil.rmtree(self._work, ignore_errors=True)

    def _ask(self, job: dict[str, Any], limit_s: float | None) -> dict[str, Any]:
        folder = self._work / "now"
        folder.mkdir(parents=True)
        # What one process compiled would make the next look fast.
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "TRITON_CACHE_DIR": str(folder / "triton"),
        }
        places = {"folder": str(folder), "tiny": str(self._work / "tiny"), "out": str(self._path.parent)}
        whole = {**job, **places, "arguments": asdict(self._asked), "server": self._server}
        try:
            if self._asked.device == "cpu" and hasattr(os, "fork"):
                return self._fork_server.ask(whole, limit_s=limit_s, variables=caches)
            return ask(_WORKER, whole, limit_s=limit_s, variables={**self._variables, **caches})
        finally:
            shutil.rmtree(folder, ignore_errors=True)
