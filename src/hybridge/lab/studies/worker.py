"""A process that measures one configuration of a study and ends: ``python -m hybridge.lab.studies.worker``.

See :mod:`..harness.worker_process` for how it is asked.  ``describe`` loads the pipeline once and says which
techniques cannot run on it, so that these start no process; ``measure`` is one configuration.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..harness.environment import environment, version
from ..harness.measure import resident_bytes
from ..harness.worker_process import Jobs, Say, answer, in_a_line
from ..techniques.catalogue import TECHNIQUES, named
from ..techniques.pipeline_context import PipelineContext
from ..techniques.stack import Step
from ..techniques.technique import Technique
from . import bench, outcomes, pipeline
from .arguments import BASELINE, Arguments, Prompt
from .pictures import JUDGES, Score, difference, judges_missing, write_png

#: What numbers depend on besides what every benchmark names and what techniques are made of.
_LIBRARIES = ("transformers", "accelerate")


def describe(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """The environment, the pipeline, the arguments with nothing left open, and why what cannot run here cannot."""
    asked = _asked(job)
    say("loading the pipeline")
    source = pipeline.located(asked.pipeline, Path(job["tiny"]))
    settled = pipeline.settled(asked, source)
    context = pipeline.context(settled, source, Path(job["folder"]), is_placed=False)
    say("asking the techniques")
    rows = [TECHNIQUES[name] for name in dict.fromkeys(n for one in asked.configurations for n in one.techniques)]
    libraries = [*_LIBRARIES, *(need for row in TECHNIQUES.values() for need in row.needs)]
    return {
        "environment": environment(context.device) | {library: version(library) for library in libraries},
        "pipeline": pipeline.about(asked.pipeline, context.pipe),
        "arguments": {**asdict(pipeline.sized(settled, context.pipe)), "server": job["arguments"]["server"]},
        "missing": {row.name: missing for row in rows if (missing := why_missing(row, context))},
        "not_scored": judges_missing(),
    }


def why_missing(technique: Technique, context: PipelineContext) -> dict[str, Any] | None:
    """What the record says of a technique that cannot run on this context, or None."""
    try:
        missing = technique.why_missing(context)
    except Exception as error:  # it looks at other people's packages, which may be broken
        return outcomes.kept(Step(technique, failure=in_a_line(error)).result())
    return None if missing is None else outcomes.kept(Step(technique, missing=missing).result())


def measure(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """One configuration: its entry for the record; its pictures are written into ``job["out"]``.

    ``{"unwritten": reason}`` where the disk takes no pictures: that is not the configuration's fault.
    """
    settled = _asked(job)
    (configuration,) = (one for one in settled.configurations if one.name == job["configuration"])
    techniques = named(configuration.techniques)
    resting_bytes = resident_bytes()
    say("loading the pipeline")
    source = pipeline.located(settled.pipeline, Path(job["tiny"]))
    begun = time.perf_counter()
    # Whoever offloads decides what lies where; the whole may not fit.
    is_placed = all(technique.stage != "offload" for technique in techniques)
    context = pipeline.context(settled, source, Path(job["folder"]), is_placed=is_placed)
    load_s = time.perf_counter() - begun
    measured = bench.measure(
        context, techniques, settled.prompts, settled.runs, resting_bytes=resting_bytes, say=say
    )
    if not measured.pictures:
        return measured.entry
    say("comparing pictures")
    out = Path(job["out"])
    try:
        written = _keep(measured.pictures, out, configuration.name)
    except OSError as error:
        return {"unwritten": str(error)}
    scores = {name: judge.make() for name, judge in JUDGES.items() if name not in job["not_scored"]}
    compared = _compared(measured.pictures, settled.prompts, out, scores)
    return {**measured.entry, "load_s": load_s, "difference": compared, "pictures": written}


def _asked(job: dict[str, Any]) -> Arguments:
    return replace(Arguments.of(job["arguments"]), server=job["server"])  # with credentials, which records lack


def _keep(pictures: Mapping[str, Any], out: Path, configuration: str) -> dict[str, str]:
    """Writes what is shown; of the baseline also the numbers, for others to be compared with."""
    written = {name: f"pictures/{configuration}/{name}.png" for name in pictures}
    for name, made in pictures.items():
        write_png(made, out / written[name])
        if configuration == BASELINE:
            with _numbers(out, name).open("wb") as file:
                np.save(file, made, allow_pickle=False)
    return written


def _compared(
    pictures: Mapping[str, Any], prompts: tuple[Prompt, ...], out: Path, scores: dict[str, Score]
) -> dict[str, Any] | None:
    """None where there is no baseline, or one of another size."""
    compared = {}
    for prompt in prompts:
        path = _numbers(out, prompt.name)
        if not path.exists():
            return None
        baseline = np.load(path, allow_pickle=False)
        if baseline.shape != pictures[prompt.name].shape:
            return None
        compared[prompt.name] = difference(pictures[prompt.name], baseline, prompt.prompt, scores)
    return compared


def _numbers(out: Path, prompt: str) -> Path:
    return out / "pictures" / BASELINE / f"{prompt}.npy"


JOBS: Jobs = {"describe": describe, "measure": measure}

if __name__ == "__main__":
    answer(JOBS)
