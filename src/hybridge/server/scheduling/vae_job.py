"""Jobs of a VAE: from a request to a job, and from its result to the response."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from ...errors import AmbiguousModel, RequestError
from ...models import ModelSpec, latent_space, latents_layout
from ...models.doctor.causes import Finding
from ...models.doctor.requests import examine_parameters
from ...protocol import (
    Answer,
    DecodeRequest,
    EncodeRequest,
    FileAnswer,
    HttpResponse,
    Request,
    TensorAnswer,
    VaeTask,
    WireTensor,
    write_answer,
)
from ...protocol.media import write_picture
from ...protocol.receipt import Receipt, comment_of, with_receipt
from ...protocol.video_reader import read_file
from ...protocol.video_writer import check_encoder, write_video
from .film import Film
from .job import LEAST_RESULT_BYTES, Job, Result
from .limits import Limits, PictureSize

#: Factors are sent as text with a few digits.
_FACTOR_TOLERANCE = 1e-3

#: Most bytes of a result for each pixel: three floats in base64, or three bytes of a file, which grows a little if
#: its content is noise.
_TENSOR_BYTES_PER_PIXEL = 16
_FILE_BYTES_PER_PIXEL = 4


@dataclass(frozen=True, slots=True)
class VaeResult(Result):
    """What a backend gives back for a :class:`VaeJob`.

    ``tensor`` is what the request's output names: floats (N, 3, H, W) for ``unit`` and ``signed``, uint8
    (N, H, W, 3) for ``pixels``, ``picture`` and ``video``, latents (N, C, h, w) for an encode request.  It is None
    for a job whose frames went into its film.
    """

    tensor: WireTensor | None

    def as_written(self, response: HttpResponse) -> VaeResult:
        return replace(self, written=response, tensor=None)


@dataclass(frozen=True, slots=True)
class VaeJob(Job[VaeResult]):
    """Pictures to decode or encode.  An encode request holds pixels by now, not a file.

    Attributes:
        request: What to do.
        size: The size of its pictures, computed once.
        film: Takes the frames as they are decoded, if the answer is a file with one video.
    """

    spec: ModelSpec
    request: Request
    size: PictureSize
    film: Film | None = field(default=None, kw_only=True, compare=False)

    @property
    def task(self) -> VaeTask:
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
        return self.spec.name

    @property
    def batch(self) -> int:
        return self.size.batch

    @property
    def amount(self) -> int:
        return self.size.pixels

    @property
    def is_repeatable(self) -> bool:
        request = self.request
        draws = request.decode_noise_scale if isinstance(request, DecodeRequest) else request.sample
        return not draws or request.seed is not None

    @property
    def nbytes(self) -> int:
        return self.request.nbytes

    @property
    def inpaints(self) -> bool:
        """Whether the decoder is shown a picture and a mask."""
        return isinstance(self.request, DecodeRequest) and self.request.image is not None

    @property
    def is_partly_sent(self) -> bool:
        return self.film is not None and self.film.has_begun

    @property
    def is_file(self) -> bool:
        """Whether the answer is a file: a picture or a video."""
        return isinstance(self.request, DecodeRequest) and self.request.output in ("picture", "video")

    @property
    def result_bytes(self) -> int:
        pixel_bytes = _FILE_BYTES_PER_PIXEL if self.is_file else _TENSOR_BYTES_PER_PIXEL
        return LEAST_RESULT_BYTES + self.size.pixels * pixel_bytes

    @property
    def batch_key(self) -> object | None:
        """See :attr:`Job.batch_key`.

        Alone are jobs whose meaning depends on all of their numbers (``value_range=auto`` of floats), those that
        draw at random, those that hold more than one picture or none of the usual four axes, those with a picture
        and a mask, and videos.
        """
        request, tensor = self.request, self.tensor
        if self.inpaints or self.spec.frames.has_axis or len(tensor.shape) != 4 or tensor.shape[0] != 1:
            return None
        what = (self.spec.name, self.task, tensor.dtype, tensor.shape, tensor.channels_last, request.scaling)
        if isinstance(request, DecodeRequest):
            kind = "bytes" if request.output in ("picture", "video", "pixels") else request.output
            return (*what, kind, request.height, request.width)
        if request.sample or (request.value_range == "auto" and tensor.dtype != "uint8"):
            return None
        return (*what, request.value_range, request.moments)

    def is_quick_to_write(self, _: VaeResult) -> bool:
        return self.request.envelope == "binary" and not self.is_file

    def write(self, result: VaeResult) -> HttpResponse:
        request = self.request
        has_receipt = isinstance(request, DecodeRequest) and request.metadata and self.film is None and self.is_file
        receipt = result.receipt(True) if has_receipt and result.receipt is not None else None
        return write_answer(self._answer(result.tensor, receipt))

    def _answer(self, tensor: WireTensor | None, receipt: Receipt | None) -> Answer:
        request = self.request
        if self.film is not None:
            with self.film as film:
                return FileAnswer(film.whole(), film.options.media_type)
        assert tensor is not None  # noqa: S101 - what a job without a film has
        if isinstance(request, DecodeRequest) and request.output == "picture":
            picture = write_picture(tensor, request.picture_format, quality=request.quality)
            return picture if receipt is None else with_receipt(picture, request, receipt.facts)
        if isinstance(request, DecodeRequest) and request.output == "video":
            comment = "" if receipt is None else comment_of(request, receipt)
            return write_video(tensor, request.video, quality=request.quality, comment=comment)
        return TensorAnswer(tensor, request.envelope)


def admit(request: Request, spec: ModelSpec, limits: Limits) -> VaeJob:
    """Check a request and return its job.  Reads picture files, so do not call it on the event loop.

    Raises:
        RequestError: when it cannot be answered.
        TooLarge: when it would pass a limit.
    """
    if isinstance(request, EncodeRequest):
        spec.check_encodes()
    found = [*_findings(request, spec)]
    if isinstance(request, DecodeRequest):
        size = limits.check_decode(request, spec)
        if request.output == "video":
            check_encoder(request.video)
            padded = request.video.note(size.width, size.height)
            found += [Finding("video-padded", padded)] if padded else []
    else:
        image = request.image
        if not isinstance(image, WireTensor):
            image = read_file(
                image,
                is_video=spec.is_video,
                max_pixels=limits.max_video_pixels if spec.is_video else limits.max_pixels,
                multiple=spec.spatial_factor,
                note=lambda code, text: found.append(Finding(code, text)),
            )
        request = replace(request, image=image)
        size = limits.check_encode(image, spec)
        dropped = spec.frames.check_frames(spec.name, size.frames)
        if dropped is not None:
            if not request.drop_frames:
                raise RequestError(
                    dropped.replace("were left out", "would be left out"),
                    hint="drop_frames=True",
                    cause="frames-dropped",
                )
            found.append(Finding("frames-dropped", dropped))
    scaling = request.scaling
    by = latent_space.normalisation_of(spec, scaling.by, scaling.scaling_factor, scaling.shift_factor)
    latent_space.check_sides(spec, by, size.height // spec.spatial_factor, size.width // spec.spatial_factor)
    film = None
    if isinstance(request, DecodeRequest) and request.output == "video" and spec.is_video:
        comment = partial(comment_of, request) if request.metadata else None
        film = Film(request.video, size.width, size.height, request.quality, comment=comment)
    return VaeJob(spec, request, size, findings=tuple(found), film=film)


def _findings(request: Request, spec: ModelSpec) -> Iterator[Finding]:
    """Return warnings for the sender that do not depend on the content."""
    if spec.kind == "tiny" and spec.parent is None and request.scaling.by == "none":
        yield Finding(
            "tiny-without-parent",
            f"{spec.name} is a tiny autoencoder of an unknown parent; it needs a pipeline's latents",
            "scaling_factor, or its folder named after the one it is (taesd, taesdxl, taesd3, taef1)",
        )
    if isinstance(request, DecodeRequest):
        yield from examine_parameters(
            request.latents.shape,
            spec,
            scaling_factor=request.scaling.scaling_factor,
            shift_factor=request.scaling.shift_factor,
            height=request.height,
            width=request.width,
        )


def infer_model(request: Request, served: Mapping[str, ModelSpec], default: str | None) -> tuple[ModelSpec, str]:
    """Return the model for a request that names none, and the reason.

    The number of latent channels tells for latents, and the given factors for both tasks.  A tiny autoencoder is
    not chosen over the full one whose latents it shares.  What still fits several models is refused: SD v1 and SDXL
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
    if request.image is not None and not spec.vae_class.inpaints:
        return False
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
