"""Did it take effect?  Asked of a whole stack at once, while a short picture is made that nobody will see.

Two steps of a small picture show most things.  Where a technique shows nothing there, it is asked again over a
picture of the pipeline's own size: tiles and strips begin only above some size, and "no effect" must not be said of
a toy.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ...errors import EngineFailure
from ..techniques.pipeline_context import PipelineContext
from ..techniques.stack import Step
from ..techniques.technique import Applied, Proof, Stage, Technique

_PROMPT = "a lighthouse in a storm"

#: Small, and still more than one token at the lowest level of every UNet (16 latents a side, three halvings).
_PIXELS = 128

_STEPS = 2

#: For what counts steps: caches, and guidance that ends early; enough for every interval in the catalogue.
_STEPS_COUNTED = 10

#: What shows only over all the steps.
_COUNTS_STEPS: frozenset[Stage] = frozenset({"cache", "call"})

#: What is made for one size; a second one would stay behind as a second, slower program.
_MADE_FOR_SIZE: frozenset[Stage] = frozenset({"compile"})


def prove(context: PipelineContext, steps: Sequence[Step]) -> dict[str, Proof]:
    """What the witnesses of all that is in force say, by the technique's name.

    Raises:
        EngineFailure: when the picture contains NaN or infinity.
        Exception: what making the picture raised.
    """
    watched = [(step.technique, step.applied) for step in steps if step.applied is not None]
    if not watched:
        return {}
    with _quietly(context):
        own_size = any(technique.stage in _MADE_FOR_SIZE for technique, _ in watched)
        proofs = _watch(context, watched, own_size=own_size)
        doubted = [(technique, applied) for technique, applied in watched if not proofs[technique.name].took_effect]
        if doubted and not own_size:
            proofs |= _watch(context, doubted, own_size=True)
    return proofs


def _watch(
    context: PipelineContext, watched: Sequence[tuple[Technique, Applied]], *, own_size: bool
) -> dict[str, Proof]:
    arguments: dict[str, Any] = {} if own_size else {"height": _PIXELS, "width": _PIXELS}
    if not any(technique.stage in _COUNTS_STEPS for technique, _ in watched):
        arguments["num_inference_steps"] = _STEPS
    elif "num_inference_steps" not in context.arguments:
        arguments["num_inference_steps"] = _STEPS_COUNTED
    with contextlib.ExitStack() as watching:
        asked = {technique.name: watching.enter_context(applied.witness()) for technique, applied in watched}
        picture = context.picture(_PROMPT, 0, **arguments)
        if not np.isfinite(picture).all():
            raise EngineFailure("the picture contains NaN or infinity", hint="one technique less")
        # Asked while the witnesses are there: what they look at may go with them.
        return {name: ask() for name, ask in asked.items()}


@contextlib.contextmanager
def _quietly(context: PipelineContext) -> Iterator[None]:
    """Pictures that leave nothing behind: no random numbers drawn, no step counted, no progress bar."""
    pipe = context.pipe
    kept = {name: vars(pipe)[name] for name in ("_progress_bar_config", "scheduler") if name in vars(pipe)}
    on_gpu = [context.device] if context.device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu):
        try:
            vars(pipe)["scheduler"] = copy.deepcopy(pipe.scheduler)
            pipe.set_progress_bar_config(disable=True)
            yield
        finally:
            del pipe._progress_bar_config
            vars(pipe).update(kept)
            for reset in context.before_picture:
                reset()
