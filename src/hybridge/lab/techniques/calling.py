"""Arguments of the call: fewer steps, guidance that ends early."""

from __future__ import annotations

from typing import Any

from .evidence import CallLog, counted
from .facts import last_guided_step
from .pipeline_context import DOUBLED, PipelineContext
from .technique import Proof, Undo, Watch


def steps(context: PipelineContext, undo: Undo, count: int) -> Watch:
    """So many steps, whatever was asked for."""
    arguments, before = context.arguments, context.arguments.get("num_inference_steps")
    if before is None:
        undo.by(arguments.pop, "num_inference_steps")
    else:
        undo.by(arguments.update, {"num_inference_steps": before})
    arguments["num_inference_steps"] = count

    def judge(log: CallLog) -> Proof:
        taken = context.pipe.scheduler.num_inference_steps
        evidence = f"{taken} steps of the scheduler, {len(log)} forwards of the denoiser; {before} steps were asked"
        return Proof(taken == count != before and len(log) > 0, evidence)

    return counted(lambda: context.denoiser, judge)


def cut_off(context: PipelineContext, undo: Undo, share: float) -> Watch:
    """Guidance for a share of the steps."""

    def end_guidance(context: PipelineContext, step: int, tensors: dict[str, Any]) -> None:
        pipe = context.pipe
        if step != last_guided_step(share, pipe.num_timesteps) or not pipe.do_classifier_free_guidance:
            return
        for name in tensors.keys() & DOUBLED:
            tensors[name] = tensors[name].chunk(2)[-1]  # first what is not wanted, then what is
        pipe._guidance_scale = 0.0  # set anew at every call
        for callback in context.guidance_ended:
            callback(step)

    undo.listen(context.after_step, end_guidance)
    return counted(lambda: context.denoiser, _halved)


def _halved(log: CallLog) -> Proof:
    """Batches of 2n, then of n."""
    whole = max(log.batches, default=0)
    ended = log.batches.index(whole // 2) if whole // 2 in log.batches else len(log)
    expected = [whole] * ended + [whole // 2] * (len(log) - ended)
    evidence = f"{ended} forwards of batch {whole}, then {len(log) - ended} of {whole // 2}"
    return Proof(0 < ended < len(log) and log.batches == expected, evidence)
