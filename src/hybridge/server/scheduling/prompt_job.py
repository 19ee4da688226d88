"""Jobs of text encoders: from a request to a job, and from its result to the response."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ...errors import RequestError, UnknownParameter
from ...models import TextSpec
from ...models.comfyui_text import COMFY_FAMILIES, comfy_family
from ...protocol import HttpResponse, PromptAnswer, PromptRequest, Task, WireTensor
from ...protocol.media import read_picture
from ...protocol.prompt_wires import write_prompt_response
from .job import LEAST_RESULT_BYTES, Job, Result, text_part
from .limits import Limits

_MOST_SHOWN = 60

#: Members of a request that name a LoRA, and the largest factor of one.
_LORA, _LORA_SCALE, _MOST_SCALE = "lora", "lora_scale", 10

#: Prompts of a job that shares a run.
_MOST_SHARED = 4

#: Bytes of embeddings that take about a millisecond to write.
_SHORT_ANSWER = 8 * 2**20

#: Bytes reserved for the embeddings of a prompt: those of FLUX.2 are as large, most are smaller.
_PROMPT_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class PromptResult(Result):
    """What a backend gives back for a :class:`PromptJob`.

    Attributes:
        answer: The embeddings.
        is_from_cache: Whether they come from the cache.
    """

    answer: PromptAnswer
    is_from_cache: bool = field(default=False, kw_only=True)

    @property
    def cache(self) -> Literal["hit", "miss"]:
        return "hit" if self.is_from_cache else "miss"

    def as_written(self, response: HttpResponse) -> PromptResult:
        return replace(self, written=response, answer=replace(self.answer, tensors={}))


@dataclass(frozen=True, slots=True)
class LoraChoice:
    """A LoRA of the server that a request names, and the factor of its part."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class PromptJob(Job[PromptResult]):
    """Prompts that were accepted.

    Attributes:
        request: What to do; its pictures are in ``pictures`` by now.
        pictures: uint8 (1, H, W, 3) each.
        pictures_hash: Their SHA-256; empty without any.  Made where they are read, because it takes milliseconds.
        lora: The LoRA of its text encoders, if it names one; what names it is not in ``request`` any more.
    """

    spec: TextSpec
    request: PromptRequest
    pictures: tuple[WireTensor, ...] = ()
    lora: LoraChoice | None = None
    pictures_hash: str = ""

    @property
    def task(self) -> Task:
        return "prompt"

    @property
    def part(self) -> str:
        return text_part(self.spec.name)

    @property
    def batch(self) -> int:
        return self.request.batch

    @property
    def nbytes(self) -> int:
        texts = sum(len(str(value)) for value in self.request.inputs.values())
        return texts + sum(picture.nbytes for picture in self.pictures)

    @property
    def cost_key(self) -> str:
        """See :attr:`Job.cost_key`: a run with a LoRA may load it first."""
        return f"{self.part} prompt{'' if self.lora is None else ' with a LoRA'}"

    @property
    def may_interrupt_its_kind(self) -> bool:
        """See :attr:`Job.may_interrupt_its_kind`: a tokenizer keeps settings meanwhile."""
        return False

    @property
    def batch_key(self) -> object | None:
        """See :attr:`Job.batch_key`: the model, the options, and which kinds of prompts there are.

        Alone are jobs whose embeddings would have another length or dtype beside other prompts, those with
        pictures, and those with many prompts, which fill a run by themselves.
        """
        side, inputs = self.spec.side, self.request.inputs
        if side.separates_requests or self.batch > _MOST_SHARED or self.request.convention != "diffusers":
            return None
        texts = {*side.negatives, *(parameter.name for parameter in side.parameters if parameter.kind == "prompt")}
        kinds = {name: inputs[name] is None for name in inputs if name in texts}
        # A second prompt that is "" means the first, as null does.
        kinds |= {name: True for name in kinds if inputs[name] == "" and not name.endswith("prompt")}
        options = {name: value for name, value in inputs.items() if name not in texts}
        return (self.part, self.lora, json.dumps([kinds, options], sort_keys=True))

    @property
    def result_bytes(self) -> int:
        return LEAST_RESULT_BYTES + 2 * self.batch * _PROMPT_BYTES

    def is_quick_to_write(self, result: PromptResult) -> bool:
        is_short = result.answer.nbytes <= _SHORT_ANSWER and self.request.envelope == "safetensors"
        return is_short and self.request.dtype is None

    def write(self, result: PromptResult) -> HttpResponse:
        """Return the response.  Copies all embeddings, so do not call it on the event loop or the device thread."""
        response = write_prompt_response(self.request, result.answer, self.spec.side.masks)
        about: dict[str, str] = {"hybridge-cache": result.cache}
        if (cut := _cut(result.answer)) is not None:
            about["hybridge-warning"] = cut
        return HttpResponse(response.status, {**response.headers, **about}, response.body)


def admit_prompt(request: PromptRequest, spec: TextSpec, limits: Limits) -> PromptJob:
    """Check prompts and return their job.  Reads picture files, so do not call it on the event loop.

    Everything that can be checked without the model is checked here, so that no model is loaded in vain.

    Raises:
        UnknownParameter: for an option that the model's pipeline does not have; names the nearest one.
        RequestError: when it cannot be answered.
        TooLarge: when it would pass a limit.
    """
    side = spec.side
    request, lora = _without_lora(request)
    known = [*dict.fromkeys([*(parameter.name for parameter in side.parameters), *side.negatives])]
    if request.convention == "comfyui":
        family = comfy_family(side)
        if family is None:
            raise RequestError(
                f"{spec.name} makes no text for ComfyUI",
                saw=f"convention=comfyui for {spec.class_name}",
                expected="a model of " + ", ".join(one.name for one in COMFY_FAMILIES),
            )
        known = list(family.inputs)
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
    return PromptJob(spec, replace(request, images=()), tuple(pictures), lora, hash_of(pictures))


def hash_of(pictures: Sequence[WireTensor]) -> str:
    """Return the SHA-256 of pictures and their sizes; empty without any."""
    if not pictures:
        return ""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"\0{picture.dtype} {picture.shape}".encode())
        digest.update(picture.data)
    return digest.hexdigest()


def _without_lora(request: PromptRequest) -> tuple[PromptRequest, LoraChoice | None]:
    """The request without what names a LoRA, which is the server's affair and not the pipeline's."""
    inputs = dict(request.inputs)
    name, scale = inputs.pop(_LORA, None), inputs.pop(_LORA_SCALE, None)
    if name is None and scale is not None:
        raise RequestError(f"`{_LORA_SCALE}` without `{_LORA}`", expected="the name of a LoRA of this server")
    if name is None:
        return replace(request, inputs=inputs), None
    if not isinstance(name, str):
        raise RequestError(f"`{_LORA}` is no name", saw=repr(name)[:_MOST_SHOWN], expected="one name")
    scale = 1.0 if scale is None else scale
    if isinstance(scale, bool) or not isinstance(scale, int | float) or abs(scale) > _MOST_SCALE:
        raise RequestError(
            f"`{_LORA_SCALE}` cannot be", saw=repr(scale)[:_MOST_SHOWN], expected=f"-{_MOST_SCALE} to {_MOST_SCALE}"
        )
    return replace(request, inputs=inputs), LoraChoice(name, float(scale))


def _cut(answer: PromptAnswer) -> str | None:
    """Return the warning about prompts that were cut; it gives their positions, not their words."""
    told = [f"{name} {', '.join(map(str, items))}" for name, items in answer.truncated.items() if items]
    if not told:
        return None
    return f"longer than the text encoder reads, so the end was not read: {'; '.join(told)} (counted from 0)"
