"""From a PromptRequest to a PromptJob, and from its result to what is sent."""

from __future__ import annotations

import difflib
from dataclasses import replace

from ...errors import RequestError, UnknownParameter
from ...models import TextSpec
from ...protocol import HttpResponse, PromptAnswer, PromptRequest, WireTensor
from ...protocol.media import read_picture
from ...protocol.prompt_wires import write_prompt_response
from .job import PromptJob, PromptResult
from .limits import Limits

_MOST_SHOWN = 60


def admit_prompt(request: PromptRequest, spec: TextSpec, limits: Limits) -> PromptJob:
    """Accepts prompts for a model, or says why not.  Reads picture files, so it belongs off the event loop.

    What can be told without the model is checked here, so that none is loaded for a request that it cannot answer.

    Raises:
        UnknownParameter: for an option that the model's pipeline does not have; names the nearest one.
        RequestError: when it cannot be answered.
        TooLarge: when it would pass a limit.
    """
    side = spec.side
    known = [*dict.fromkeys([*(parameter.name for parameter in side.parameters), *side.negatives])]
    for name in request.inputs:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UnknownParameter(
                f"{spec.name} has no `{name[:_MOST_SHOWN]}`",
                saw=f"the text encoders of {spec.class_name}",
                expected="some of " + ", ".join(known),
                hint=near[0] if near else None,
            )
    if bool(request.images) != (side.picture is not None):
        raise RequestError(
            f"{spec.name} {'reads no picture' if request.images else 'needs a picture'} beside the prompt",
            saw=f"{len(request.images)} pictures",
            expected="none" if request.images else "a form with the fields `request` and `image`",
        )
    pictures: list[WireTensor] = []
    pixels = 0
    for file in request.images:
        pictures.append(read_picture(file, max_pixels=limits.max_pixels - pixels, multiple=1))
        pixels += pictures[-1].shape[1] * pictures[-1].shape[2]
        limits.check_pixels(pixels, f"{len(pictures)} pictures")
    return PromptJob(spec, replace(request, images=()), tuple(pictures))


def finish_prompt(job: PromptJob, result: PromptResult) -> HttpResponse:
    """The response to a job.  Copies all of it, so it belongs off the event loop and off the device."""
    response = write_prompt_response(job.request, result.answer, job.spec.side.masks)
    about = {"hybridge-cache": "hit" if result.is_from_cache else "miss"}
    if (cut := _cut(result.answer)) is not None:
        about["hybridge-warning"] = cut
    return HttpResponse(response.status, {**response.headers, **about}, response.body)


def _cut(answer: PromptAnswer) -> str | None:
    """What the sender should hear of prompts that were cut; it names their places, not their words."""
    told = [f"{name} {', '.join(map(str, items))}" for name, items in answer.truncated.items() if items]
    if not told:
        return None
    return f"longer than the text encoder reads, so the end was not read: {'; '.join(told)} (counted from 0)"
