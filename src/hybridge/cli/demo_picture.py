"""The first half of ``hybridge demo``: a picture of a prompt, of which this process only computes the denoising."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .demo_server import Traffic

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console

    from ..scenes import Scene
    from .demo_server import DemoServer

STEPS, GUIDANCE, SEED = 20, 3.0, 0

#: Characters of the longest prompt; the longest caption of the grammar has 120.
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of the table: what happened, where, the bytes of bodies, and milliseconds."""

    what: str
    where: str
    traffic: Traffic | None
    milliseconds: float
    result: str = ""


def understood(prompt: str) -> Scene:
    """What a prompt asks for.

    Raises:
        RequestError: for one that the starter was not trained on; the grammar is its hint.
    """
    from ..errors import RequestError
    from ..scenes import GRAMMAR, read

    if len(prompt) > _LONGEST:
        raise RequestError(
            "the prompt is too long", saw=f"{len(prompt)} characters", expected=f"at most {_LONGEST}"
        )
    try:
        return read(prompt)
    except RequestError as error:
        grammar = f"a prompt of its grammar:\n\n{GRAMMAR}"
        raise RequestError(error.what, saw=error.saw, expected=error.expected, hint=grammar) from None


def picture_of(prompt: str, scene: Scene, server: DemoServer, console: Console) -> tuple[Image, list[Stage]]:
    """The picture, made with the server and once more without one, and a row for each stage."""
    import torch
    import transformers

    quiet: Any = transformers.logging
    quiet.set_verbosity_error()  # importing pipelines names libraries that are not needed here
    quiet.disable_progress_bar()
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    from ..client.pipelines import connect
    from ..models.catalogue import STARTER
    from ..scenes import check

    logging.disable_progress_bar()
    with console.status("loading the UNet"):
        pipe = StableDiffusionPipeline.from_pretrained(STARTER, text_encoder=None, vae=None, dtype=torch.float32)
    with connect(pipe, server.address, model="starter", text_model="starter"):
        _call(pipe, "", 2, None)  # not measured: torch's first forward of a shape takes longer
        server.traffic("decode")
        picture, clock = _call(pipe, prompt, STEPS, "denoising")
    with console.status("the same without a server"):
        whole = StableDiffusionPipeline.from_pretrained(STARTER, dtype=torch.float32)
        local, alone = _call(whole, prompt, STEPS, None)
    finding = check(scene, picture)
    is_right = "as asked" if finding.is_right else f"[red]{', '.join(finding.wrong)}[/]"
    return picture, [
        Stage("read the prompt", "server", server.traffic("prompt"), clock.before_ms),
        Stage(f"denoise, {STEPS} steps", "this process", None, clock.denoising_ms),
        Stage("decode the latents", "server", server.traffic("decode"), clock.after_ms, is_right),
        Stage(
            "all of it",
            "this process",
            None,
            alone.before_ms + alone.denoising_ms + alone.after_ms,
            how_far_apart(picture, local),
        ),
    ]


def how_far_apart(picture: Any, other: Any) -> str:
    """In a few words; with another number of threads sums have other last bits, which can move a pixel by 1."""
    import numpy as np

    apart = int(np.abs(np.asarray(picture).astype(int) - np.asarray(other)).max())
    return "identical" if apart == 0 else f"up to {apart}/255 apart"


@dataclass(slots=True)
class _Clock:
    """When a call of a pipeline began, each of its steps ended, and the picture was there, in seconds."""

    began: float
    steps: list[float] = field(default_factory=list)
    ended: float = 0.0

    @property
    def _step(self) -> float:
        return (self.steps[-1] - self.steps[0]) / (len(self.steps) - 1)

    @property
    def denoising_ms(self) -> float:
        return 1e3 * self._step * len(self.steps)

    @property
    def before_ms(self) -> float:
        return 1e3 * max(0.0, self.steps[0] - self._step - self.began)

    @property
    def after_ms(self) -> float:
        return 1e3 * (self.ended - self.steps[-1])


def _call(pipe: Any, prompt: str, steps: int, shown_as: str | None) -> tuple[Image, _Clock]:
    import torch

    # None: where there is a terminal.
    pipe.set_progress_bar_config(disable=None if shown_as else True, desc=shown_as, leave=False)
    clock = _Clock(time.perf_counter())

    def note(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        clock.steps.append(time.perf_counter())
        return values

    ending: Callable[..., dict[str, Any]] = note
    picture = pipe(
        prompt,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(SEED),
        callback_on_step_end=ending,
    ).images[0]
    clock.ended = time.perf_counter()
    return picture, clock
