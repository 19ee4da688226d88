"""Arguments of the call: fewer steps, guidance that ends early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .evidence import CallLog, counted
from .pipeline_context import PipelineContext
from .technique import Applied, Missing, Proof, Technique, row


def _steps(count: int) -> Callable[[PipelineContext], Applied]:
    def apply(context: PipelineContext) -> Applied:
        arguments, before = context.arguments, context.arguments.get("num_inference_steps")
        arguments["num_inference_steps"] = count

        def judge(log: CallLog) -> Proof:
            taken = context.pipe.scheduler.num_inference_steps
            evidence = (
                f"{taken} steps of the scheduler, {len(log)} forwards of the denoiser; {before} steps were asked"
            )
            return Proof(taken == count != before and len(log) > 0, evidence)

        def undo() -> None:
            if before is None:
                del arguments["num_inference_steps"]
            else:
                arguments["num_inference_steps"] = before

        return Applied(counted(lambda: context.denoiser, judge), undo)

    return apply


def last_guided_step(share: float, steps: int) -> int:
    """Index of the step after which guidance ends.

    The rule of the guide and of diffusers' own callback: guidance is switched off when step ``int(steps × share)``
    is over, counted from 0, so one step more than the share itself is under guidance: 6 of 10, 26 of 50.

    Args:
        share: Of the steps, below 1.
        steps: Of this call.
    """
    return int(steps * share)


def _cut_off(share: float) -> Callable[[PipelineContext], Applied]:
    def apply(context: PipelineContext) -> Applied:
        def end_guidance(context: PipelineContext, step: int, tensors: dict[str, Any]) -> None:
            pipe = context.pipe
            if step != last_guided_step(share, pipe.num_timesteps) or not pipe.do_classifier_free_guidance:
                return
            for name in tensors.keys() & _DOUBLED:
                tensors[name] = tensors[name].chunk(2)[-1]  # first what is not wanted, then what is
            pipe._guidance_scale = 0.0  # set anew at every call
            for callback in context.guidance_ended:
                callback(step)

        context.after_step.append(end_guidance)
        return Applied(counted(lambda: context.denoiser, _halved), lambda: context.after_step.remove(end_guidance))

    return apply


#: Tensors that have an unwanted and a wanted half under guidance.
_DOUBLED = {"prompt_embeds", "add_text_embeds", "add_time_ids", "pooled_prompt_embeds"}


def _halved(log: CallLog) -> Proof:
    """Batches of 2n, then of n."""
    whole = max(log.batches, default=0)
    ended = log.batches.index(whole // 2) if whole // 2 in log.batches else len(log)
    expected = [whole] * ended + [whole // 2] * (len(log) - ended)
    evidence = f"{ended} forwards of batch {whole}, then {len(log) - ended} of {whole // 2}"
    return Proof(0 < ended < len(log) and log.batches == expected, evidence)


def _why_no_guidance(context: PipelineContext) -> Missing | None:
    if not hasattr(type(context.pipe), "do_classifier_free_guidance"):
        name = type(context.pipe).__name__
        reason = f"a {name} runs no second forward for guidance: that was distilled into its weights"
        return Missing("unavailable", reason, instead="nothing is needed")
    return None


ROWS: tuple[Technique, ...] = (
    row("steps-25", _steps(25)),
    row("steps-30", _steps(30)),
    row("cfg-cutoff-50", _cut_off(0.5), _why_no_guidance),
    row("cfg-cutoff-75", _cut_off(0.75), _why_no_guidance),
)
