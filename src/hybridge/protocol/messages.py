"""The types of requests and answers.

A request contains everything that the sender said and nothing that depends on the model.  The layout of a 3-D
tensor, for example, is decided where the model is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import RequestError
from .tensor import WireTensor
from .video_formats import DEFAULT_VIDEO, VideoOptions

#: What a VAE does.
VaeTask = Literal["decode", "encode"]

#: What a server does.
Task = Literal["decode", "encode", "prompt"]

#: The content of a decode answer's body; one word for each row of the response matrix in docs/protocol.md.
#:
#: * ``picture``: one JPEG, PNG or WebP file
#: * ``unit``: float tensor (N, 3, H, W) in [0, 1]
#: * ``signed``: float tensor (N, 3, H, W), about [-1, 1], as the VAE returns it (not clamped)
#: * ``pixels``: uint8 tensor (N, H, W, 3)
#: * ``video``: one file: MP4, WebM, GIF or animated WebP
Output = Literal["picture", "unit", "signed", "pixels", "video"]

PictureFormat = Literal["jpeg", "png", "webp"]

#: Default quality of a JPEG or a video: no visible artefacts.
DEFAULT_QUALITY = 95

#: How a tensor is encoded: raw bytes with ``shape`` and ``dtype`` headers, or base64 in JSON.
Envelope = Literal["binary", "base64"]

#: The range of an image tensor: ``unit`` is [0, 1], ``signed`` is [-1, 1]; ``auto`` is diffusers' rule: signed if
#: any value is below zero, else unit.  uint8 is always 0..255.
ValueRange = Literal["auto", "unit", "signed"]


@dataclass(frozen=True, slots=True)
class Scaling:
    """How the latents of a request or an answer relate to the VAE's own latent space.

    ``none``: they are in VAE space.  ``given``: they are scaled by ``scaling_factor`` and ``shift_factor``.
    ``model``: they are scaled as in the model's own pipelines; a ``shift_factor`` may still be given.
    Decoding computes ``z / scaling_factor + shift_factor``, encoding ``(z - shift_factor) * scaling_factor``.
    """

    by: Literal["none", "given", "model"] = "none"
    scaling_factor: float | None = None
    shift_factor: float | None = None

    @classmethod
    def of(
        cls,
        do_scaling: bool | None,
        scaling_factor: float | None,
        shift_factor: float | None,
        *,
        scales_by_default: bool = False,
    ) -> Scaling:
        """Return the scaling that these three parameters mean together; docs/protocol.md has the table.

        ``do_scaling=False`` has priority over factors (ComfyUI sends both), then a given factor, then the model's
        own.

        Raises:
            RequestError: for a factor by which one cannot divide, and for a shift that would have no effect.
        """
        if scaling_factor is not None and not scaling_factor > 0:
            raise RequestError(
                "scaling_factor must be above zero",
                saw=scaling_factor,
                expected="the VAE's own, such as 0.18215 for SD v1",
                hint="leave it out for latents that are in the VAE's own space already",
            )
        if do_scaling is False:
            return cls()
        if scaling_factor is not None:
            return cls("given", scaling_factor, shift_factor)
        if do_scaling or scales_by_default:
            return cls("model", None, shift_factor)
        if shift_factor:  # shifting by zero is allowed
            raise RequestError(
                "shift_factor without scaling_factor",
                saw=f"shift_factor={shift_factor}",
                expected="both, or neither",
                hint="scaling_factor as well, or do_scaling=True for the model's own",
            )
        return cls()


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture as a file: the bytes of a PNG, JPEG or WebP, not yet checked."""

    data: bytes


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A video as a file: the bytes of an MP4, WebM or GIF, not yet checked.  An animated WebP is a PictureFile."""

    data: bytes


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """A request to decode latents.

    ``height`` and ``width`` are those of the picture, in pixels; they are used only for packed latents.  With
    ``preview`` the answer comes in parts, a quick approximation first; see :mod:`.multipart_answer`.  ``video`` is
    the kind of file if the output is ``video``.  With ``metadata`` a picture file has a receipt in it; see
    :mod:`.receipt`.
    ``decode_timestep``, ``decode_noise_scale`` and ``seed`` are for decoders that are conditioned on a timestep, as
    LTX-Video's pipelines take them.  ``decode_chunk_size`` is the number of frames that Stable Video Diffusion's
    decoder takes at once; None for all.
    ``image`` and ``mask`` are for decoders that are shown the picture that was inpainted (AsymmetricAutoencoderKL):
    pixels, floats (N, 3, H, W) in [-1, 1] or uint8, and what was painted anew, floats (N, 1, H, W) in [0, 1] or
    uint8, where 1 or 255 is new.

    Raises:
        RequestError: for one of these two without the other.
    """

    latents: WireTensor
    scaling: Scaling = Scaling()
    output: Output = "picture"
    picture_format: PictureFormat = "jpeg"
    quality: int = DEFAULT_QUALITY
    envelope: Envelope = "binary"
    height: int | None = None
    width: int | None = None
    preview: bool = False
    video: VideoOptions = DEFAULT_VIDEO
    metadata: bool = False
    decode_timestep: float | None = None
    decode_noise_scale: float | None = None
    seed: int | None = None
    decode_chunk_size: int | None = None
    image: WireTensor | None = None
    mask: WireTensor | None = None

    def __post_init__(self) -> None:
        if (self.image is None) != (self.mask is None):
            raise RequestError(
                "an image and its mask belong together",
                saw="image alone" if self.mask is None else "mask alone",
                expected="image and mask, or neither",
            )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that were sent."""
        return sum(tensor.nbytes for tensor in (self.latents, self.image, self.mask) if tensor is not None)


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """A request to encode a picture or a video.

    The answer is the mode of the posterior; with ``sample`` a sample from it, which ``seed`` makes repeatable; with
    ``moments`` the posterior itself: mean and then logarithm of the variance, (B, 2·C, h, w), in VAE space, as the
    VAE returns them.  Some models encode certain numbers of frames, and diffusers drops the frames beyond; without
    ``drop_frames`` this is an error.

    Raises:
        RequestError: for ``moments`` together with scaling or ``sample``.
    """

    image: PictureFile | VideoFile | WireTensor
    scaling: Scaling = Scaling()
    value_range: ValueRange = "auto"
    sample: bool = False
    seed: int | None = None
    envelope: Envelope = "binary"
    moments: bool = False
    drop_frames: bool = True

    def __post_init__(self) -> None:
        if self.moments and (self.scaling.by != "none" or self.sample or self.seed is not None):
            raise RequestError(
                "moments are the posterior itself",
                saw="a scaling as well" if self.scaling.by != "none" else "sample or seed as well",
                expected="moments=True without sample, seed, do_scaling and the factors",
                hint="scaling what is drawn from them",
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor or the file that was sent."""
        return memoryview(self.image.data).nbytes


Request = DecodeRequest | EncodeRequest


@dataclass(frozen=True, slots=True)
class TensorAnswer:
    """An answer with a tensor, and the requested envelope."""

    tensor: WireTensor
    envelope: Envelope = "binary"


@dataclass(frozen=True, slots=True)
class FileAnswer:
    """An answer with a file: one picture, or one video."""

    data: bytes
    media_type: str


Answer = TensorAnswer | FileAnswer


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """The parts of an HTTP request that hybridge sets; the method is always POST."""

    query: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """The parts of an HTTP response that hybridge sets.  Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
