"""One configuration on the bench: applied, warmed up, timed, proven, gauged.

Nothing is watched while it is timed.  Proof and memory have pictures of their own, after the timing: a witness
hooks modules, and counting every operator's memory is slow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..harness.measure import growth, seconds
from ..harness.memory import PeakBytes, storage_bytes
from ..harness.worker_process import Say, in_a_line
from ..techniques import stack
from ..techniques.evidence import CallLog
from ..techniques.pipeline_context import PipelineContext, modules
from ..techniques.stack import Step
from ..techniques.technique import Technique
from . import outcomes
from .arguments import Prompt
from .record import Peak


@dataclass(frozen=True, slots=True)
class Measured:
    """What became of a configuration.

    Attributes:
        entry: For the record: plain data.
        pictures: By prompt, (B, H, W, 3) float arrays in [0, 1]; empty where there are none.
    """

    entry: dict[str, Any]
    pictures: dict[str, Any]


def measure(
    context: PipelineContext,
    techniques: Sequence[Technique],
    prompts: Sequence[Prompt],
    runs: int,
    *,
    resting_bytes: int | None = None,
    say: Say = lambda _: None,
) -> Measured:
    """Puts a stack in force and measures it; it stays in force.

    Args:
        context: As it was loaded.
        techniques: In order; see :func:`..techniques.stack.check`.
        prompts: The first is the one that everything but the timing is done with.
        runs: Warm pictures of each.
        resting_bytes: Resident bytes of this process before the pipeline was loaded, where they are known.
        say: Hears what is being done.

    Raises:
        RequestError: for a stack that cannot be.
    """
    say("applying it")
    begun = time.perf_counter()
    steps = stack.apply(context, techniques)
    preparation_s = time.perf_counter() - begun
    troubled = [outcomes.kept(step.result()) for step in steps if step.applied is None]
    if troubled:
        return Measured(outcomes.together(troubled), {})
    names = [technique.name for technique in techniques]
    try:
        measured, pictures = _measured(context, steps, prompts, runs, resting_bytes, say)
    except Exception as error:  # other people's code: what it cannot do is an outcome, not the end of the study
        return Measured(outcomes.failed(names, in_a_line(error)), {})
    broken = [name for name, picture in pictures.items() if not np.isfinite(picture).all()]
    if broken:
        return Measured(
            outcomes.failed(names, f"not every number of the picture is finite: {', '.join(broken)}"), {}
        )
    return Measured({**measured, "preparation_s": preparation_s}, pictures)


def _measured(
    context: PipelineContext,
    steps: Sequence[Step],
    prompts: Sequence[Prompt],
    runs: int,
    resting_bytes: int | None,
    say: Say,
) -> tuple[dict[str, Any], dict[str, Any]]:
    first = prompts[0]

    def make() -> Any:
        return context.picture(first.prompt, first.seed)

    say("making the first picture")
    first_picture_s = seconds(make, context.device)
    say("warming up")
    make()  # compilers that only watch a first call compile at the second
    say("timing")
    timed, pictures = _timed(context, prompts, runs)
    say("proving")
    proven, calls = _proven(context, steps, make)
    say("measuring memory")
    peak, why_not_exact = _peak(context, steps, make, resting_bytes)
    entry = {
        **outcomes.together(proven),
        "first_picture_s": first_picture_s,
        "seconds": timed,
        "steps": context.arguments["num_inference_steps"],
        "denoiser_calls": calls,
        "weights_bytes": storage_bytes(torch.nn.ModuleList(modules(context.pipe).values())),
        "peak": asdict(peak),
        "why_not_exact": why_not_exact,
    }
    return entry, pictures


def _timed(
    context: PipelineContext, prompts: Sequence[Prompt], runs: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """(seconds by prompt, run by run; the last run's pictures, in which leftovers of earlier ones would show)."""
    timed: dict[str, list[float]] = {prompt.name: [] for prompt in prompts}
    pictures: dict[str, Any] = {}

    def make(prompt: Prompt) -> Callable[[], None]:
        def call() -> None:
            pictures[prompt.name] = context.picture(prompt.prompt, prompt.seed)

        return call

    for _ in range(runs):
        for prompt in prompts:
            timed[prompt.name].append(seconds(make(prompt), context.device))
    return timed, pictures


def _proven(
    context: PipelineContext, steps: Sequence[Step], make: Callable[[], Any]
) -> tuple[list[dict[str, Any]], list[int] | None]:
    """(what the witnesses say of one picture, the batch size of each forward of the denoiser).

    The latter is None where something that is no module of torch stands in for the denoiser.
    """
    with ExitStack() as watching:
        proofs = [watching.enter_context(step.applied.witness()) for step in steps if step.applied]
        is_module = isinstance(context.denoiser, torch.nn.Module)
        calls = watching.enter_context(CallLog(context.denoiser)) if is_module else None
        make()
        # Asked while the witnesses are still there: what they look at may go with them.
        said = [outcomes.kept(step.result(proof())) for step, proof in zip(steps, proofs, strict=True)]
    return said, None if calls is None else calls.batches


def _peak(
    context: PipelineContext, steps: Sequence[Step], make: Callable[[], Any], resting_bytes: int | None
) -> tuple[Peak, str | None]:
    """(the most bytes, why tensors were not counted); of a CPU's process, since before the pipeline was loaded."""
    allocated = reserved = resident = None
    if context.device.type == "cuda":
        _, allocated = growth(make, context.device, above=0)
        reserved = torch.cuda.max_memory_reserved(context.device)
    if context.device.type == "cpu" and resting_bytes is not None:
        _, resident = growth(make, context.device, above=resting_bytes)
    exact, why_not_exact = _exact(context, steps, make)
    return Peak(exact, allocated, reserved, resident), why_not_exact


def _exact(
    context: PipelineContext, steps: Sequence[Step], make: Callable[[], Any]
) -> tuple[int | None, str | None]:
    """(bytes of tensors on top of the weights, why they were not counted)."""
    if context.device.type != "cpu":
        return None, f"counted on CPUs, not on {context.device.type}"
    if any(step.technique.stage == "compile" for step in steps) or not isinstance(
        context.denoiser, torch.nn.Module
    ):
        return None, "what is compiled, or runs in another engine, cannot be counted"
    try:
        with PeakBytes(leaving_out=modules(context.pipe).values()) as counted:
            make()
    except Exception as error:  # pictures were made before: it is the counting that this one does not bear
        return None, in_a_line(error)
    return counted.peak_bytes, None
