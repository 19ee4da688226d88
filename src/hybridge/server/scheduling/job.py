"""From a Request to a Job: admitted, costed, and ready for a backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ...errors import AmbiguousModel, RequestError
from ...models import ModelSpec, TextSpec, latents_layout
from ...protocol import (
    Answer,
    DecodeRequest,
    EncodeRequest,
    PromptAnswer,
    PromptRequest,
    Request,
    Task,
    TensorAnswer,
    VaeTask,
    WireTensor,
)
from ...protocol.media import read_picture, write_picture, write_video
from .limits import Limits, PictureSize

#: Factors travel as text with a handful of digits.
_FACTOR_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Job:
    """Work that was accepted.  An encode request holds pixels by now, not a file.

    Attributes:
        spec: The model that it is for.
        request: What to do.
        size: Of its pictures, computed once.
        warning: Something that the sender should hear of.
        client: The client that sent it; the queue is fair between clients.
        is_patient: It was accepted for later, and is not refused because the queue is full.
    """

    spec: ModelSpec
    request: Request
    size: PictureSize
    warning: str | None = None
    client: str = ""
    is_patient: bool = False

    @property
    def task(self) -> VaeTask:
        """What to do."""
        return "decode" if isinstance(self.request, DecodeRequest) else "encode"

    @property
    def tensor(self) -> WireTensor:
        """What was sent."""
        if isinstance(self.request, DecodeRequest):
            return self.request.latents
        assert isinstance(self.request.image, WireTensor)  # noqa: S101 - admit() has read the file
        return self.request.image

    @property
    def part(self) -> str:
        """What has to be loaded for it."""
        return self.spec.name

    @property
    def may_interrupt_its_kind(self) -> bool:
        """Whether it may run while another job of the same part pauses."""
        return True

    @property
    def nbytes(self) -> int:
        """Of what was sent."""
        return self.tensor.nbytes


@dataclass(frozen=True, slots=True)
class PromptJob:
    """Prompts that were accepted.

    Attributes:
        spec: The model that they are for.
        request: What to do; its pictures are in ``pictures`` by now.
        pictures: uint8 (1, H, W, 3) each.
        warning, client, is_patient: As of a :class:`Job`.
    """

    spec: TextSpec
    request: PromptRequest
    pictures: tuple[WireTensor, ...] = ()
    warning: str | None = None
    client: str = ""
    is_patient: bool = False

    @property
    def task(self) -> Task:
        """What to do."""
        return "prompt"

    @property
    def part(self) -> str:
        """What has to be loaded for it."""
        return text_part(self.spec.name)

    @property
    def may_interrupt_its_kind(self) -> bool:
        """Whether it may run while another job of the same part pauses: a tokenizer keeps settings meanwhile."""
        return False

    @property
    def nbytes(self) -> int:
        """Of what was sent, about."""
        texts = sum(len(str(value)) for value in self.request.inputs.values())
        return texts + sum(picture.nbytes for picture in self.pictures)


#: All work.
AnyJob = Job | PromptJob


def text_part(name: str) -> str:
    """What a model's text encoders are called beside its VAE, which has the model's own name."""
    return f"{name}:text"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes:
        state: ``loading`` is waiting for the model.
        position: How many are served before it, as it looks now.
        eta_s: Seconds until it is done, as it looks now.
        done: The share of its work that is done.
    """

    state: Literal["waiting", "loading", "running"]
    position: int = 0
    eta_s: float | None = None
    done: float = 0.0


#: Hears of a job's progress, on the event loop.
ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """How a job was run.

    Attributes:
        mode: The engine's word for it.
        peak_bytes: Most that the run took on top of the weights, where that is known.
        flops: Its arithmetic, where that is known.
        why: Why this mode.
    """

    mode: str
    peak_bytes: int | None = None
    flops: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a backend gives back for a Job.

    ``tensor`` is what the request's output names: floats (N, 3, H, W) for ``unit`` and ``signed``, uint8
    (N, H, W, 3) for ``pixels``, ``picture`` and ``video``, latents (N, C, h, w) for an encode request.
    ``shared_by`` is the number of jobs in the run that made it.
    """

    tensor: WireTensor
    milliseconds: dict[str, float] = field(default_factory=dict)
    ran: RunInfo | None = None
    shared_by: int = 1


@dataclass(frozen=True, slots=True)
class PromptResult:
    """What a backend gives back for a PromptJob.

    Attributes:
        answer: The embeddings.
        milliseconds, ran, shared_by: As of a :class:`Result`.
        is_from_cache: Whether they were made before.
    """

    answer: PromptAnswer
    milliseconds: dict[str, float] = field(default_factory=dict)
    ran: RunInfo | None = None
    shared_by: int = 1
    is_from_cache: bool = False


#: What comes of a job that does not fail.
AnyResult = Result | PromptResult


def admit(request: Request, spec: ModelSpec, limits: Limits) -> Job:
    """Accepts a request for a model, or says why not.  Reads picture files, so it belongs off the event loop.

    Raises:
        RequestError: when it cannot be answered.
        TooLarge: when it would pass a limit.
    """
    if isinstance(request, EncodeRequest):
        spec.check_encodes()
    notes = _notes(request, spec)
    if isinstance(request, DecodeRequest):
        size = limits.check_decode(request, spec)
    elif isinstance(request.image, WireTensor):
        size = limits.check_encode(request.image, spec)
    else:
        image = read_picture(
            request.image.data, max_pixels=limits.max_pixels, multiple=spec.spatial_factor, note=notes.append
        )
        request = replace(request, image=image)
        size = limits.check_encode(image, spec)
    if isinstance(request, EncodeRequest):
        notes += [note for note in (spec.frames.check_frames(spec.name, size.frames),) if note]
    return Job(spec, request, size, "; ".join(notes) or None)


def _notes(request: Request, spec: ModelSpec) -> list[str]:
    """What the sender should hear of, before the content is looked at."""
    if spec.kind == "tiny" and spec.parent is None and request.scaling.by == "none":
        return [
            f"{spec.name} is a tiny autoencoder of an unknown parent; it needs a pipeline's latents."
            " Send scaling_factor, or name its folder after the one it is (taesd, taesdxl, taesd3, taef1)"
        ]
    return []


def finish(job: Job, result: Result) -> Answer:
    """What is sent for a result.  Writes picture files, so it belongs off the event loop and off the device."""
    request, tensor = job.request, result.tensor
    if isinstance(request, DecodeRequest) and request.output == "picture":
        return write_picture(tensor, request.picture_format, quality=request.quality)
    if isinstance(request, DecodeRequest) and request.output == "video":
        return write_video(tensor)
    return TensorAnswer(tensor, request.envelope)


def infer_model(request: Request, served: Mapping[str, ModelSpec], default: str | None) -> tuple[ModelSpec, str]:
    """The model that a request without a name is for, and the reason.

    Latents tell by their channels, and both tasks by the factors that they carry.  A tiny autoencoder is not
    chosen over the full one whose latents it shares.  What still fits several models is refused: SD v1 and SDXL
    latents look alike, and the wrong VAE gives a wrong picture without an error.

    Args:
        request: What was sent.
        served: The models of this server, by name.
        default: The model to take where several fit, if the server has one.

    Raises:
        RequestError: when no model fits.
        AmbiguousModel: when several do.
    """
    if len(served) == 1:
        (only,) = served.values()
        return only, "the only model here"
    fitting = [spec for spec in served.values() if _fits(request, spec)]
    if not fitting and isinstance(request, EncodeRequest):
        raise RequestError("no model here can encode", expected="a model whose weights have an encoder")
    if not fitting and isinstance(request, DecodeRequest):
        raise RequestError(
            "no model here has such latents",
            saw=f"shape {list(request.latents.shape)}",
            expected="one of " + ", ".join(f"{s.name} ({s.latent_channels} channels)" for s in served.values()),
        )
    reasons = [] if isinstance(request, EncodeRequest) else [f"{fitting[0].latent_channels} latent channels"]
    matching = [spec for spec in fitting if _has_factors(request, spec)]
    if matching:
        fitting = matching
        reasons.append(f"scaling factor {request.scaling.scaling_factor:g}")
    if default in {spec.name for spec in fitting} and len(fitting) > 1:
        return served[default or ""], "the default where several fit"
    if any(spec.kind != "tiny" for spec in fitting):
        fitting = [spec for spec in fitting if spec.kind != "tiny"]
    if len(fitting) == 1:
        return fitting[0], ", ".join(reasons) or "the only full model here"
    raise AmbiguousModel(
        "several models here fit what was sent",
        saw=", ".join(spec.name for spec in fitting),
        expected="one",
        hint=f"scaling_factor, or the path /v1/{fitting[0].name}/…, or --default-model when starting the server",
    )


def _fits(request: Request, spec: ModelSpec) -> bool:
    if isinstance(request, EncodeRequest):
        return spec.has_encoder
    try:
        latents_layout(request.latents.shape, spec, request.height, request.width)
    except RequestError:
        return False
    return True


def _has_factors(request: Request, spec: ModelSpec) -> bool:
    given, own = request.scaling, spec.normalisation
    if given.by != "given" or given.scaling_factor is None:
        return False
    return math.isclose(given.scaling_factor, own.scaling_factor, rel_tol=_FACTOR_TOLERANCE) and math.isclose(
        given.shift_factor or 0.0, own.shift_factor, rel_tol=_FACTOR_TOLERANCE
    )
