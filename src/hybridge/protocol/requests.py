"""Read DecodeRequest and EncodeRequest from HTTP bytes, in every form that known clients send.

Five forms are read.  *Binary*: the tensor is the body, everything else is in the query (diffusers, SD.Next,
ComfyUI).  *Base64*: the tensor is in JSON, the rest in the query.  *JSON*: the oldest form, with the parameters in
the JSON, too, and with scaling if ``do_scaling`` is missing.  *File*: a PNG, JPEG or WebP picture, or an MP4, WebM
or GIF video.  *Safetensors*: latents with a picture and a mask; see :mod:`.inpainting`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from ..errors import RequestError, UnsupportedMedia
from .decoder_parameters import DECODER_PARAMETERS, read_decoder_parameters
from .inpainting import read_inpainting
from .json_bodies import read_json_body
from .messages import (
    DEFAULT_QUALITY,
    DecodeRequest,
    EncodeRequest,
    Envelope,
    Output,
    PictureFile,
    PictureFormat,
    Request,
    Scaling,
    Task,
    ValueRange,
    VideoFile,
)
from .picture_files import name_format, sniff_picture
from .query import Parameters, read_query
from .safetensors_bytes import SAFETENSORS
from .tensor import WireTensor
from .video_formats import MEDIA_TYPES, VideoFormat, sniff_video
from .video_parameters import VIDEO_PARAMETERS, read_video_options

BINARY = "tensor/binary"
BASE64 = "tensor/base64"
JSON = "application/json"

#: What curl calls a body for which it is told no type.
_FORM = "application/x-www-form-urlencoded"

_PICTURE_FORMATS: dict[str, PictureFormat] = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "webp": "webp"}
_PICTURE_TYPES: dict[str, PictureFormat] = {
    "image/jpeg": "jpeg",
    "image/jpg": "jpeg",
    "image/png": "png",
    "image/webp": "webp",
}
_OUTPUT_TYPES = {name: name for name in ("pil", "pt", *MEDIA_TYPES)}
#: WebP is a picture in an Accept header, as it has always been.
_VIDEO_TYPES = {media: name for name, media in MEDIA_TYPES.items() if name != "webp"}
_VALUE_RANGES: dict[str, ValueRange] = {"auto": "auto", "unit": "unit", "signed": "signed"}

#: Most characters of a client's Content-Type that are repeated in an error.
_SHOWN = 60

#: Numbers that are checked, from all of a tensor, to tell pixels from latents: latents have negative ones.
_LOOKED_AT = 16_384

#: The memoryview format for a float's bits, and the bits of 1.0.
_BITS_OF_ONE: dict[str, tuple[Literal["I", "H"], int]] = {
    "float32": ("I", 0x3F800000),
    "float16": ("H", 0x3C00),
    "bfloat16": ("H", 0x3F80),
}

#: Most entries of an Accept header that are read, and most options of each; browsers send eight with one or two.
_MAX_ACCEPTED = 64
_MAX_OPTIONS = 8

_OF_A_TENSOR = ("shape", "dtype", "channels_last")
_TENSOR_PARAMETERS = (*_OF_A_TENSOR, "do_scaling", "scaling_factor", "shift_factor")
DECODE_PARAMETERS = (
    *_TENSOR_PARAMETERS,
    "height",
    "width",
    "output_type",
    "image_format",
    "partial_postprocess",
    "quality",
    "preview",
    "metadata",
    *VIDEO_PARAMETERS,
    *DECODER_PARAMETERS,
)
ENCODE_PARAMETERS = (*_TENSOR_PARAMETERS, "value_range", "sample", "seed", "moments", "drop_frames")
_DECODE_ONLY = tuple(name for name in DECODE_PARAMETERS if name not in ENCODE_PARAMETERS)


def read_request(query: str, headers: Mapping[str, str], body: bytes, task: Task | None = None) -> Request:
    """What a client asked for.

    Args:
        query: The raw query string, still percent-encoded.
        headers: Header names in lower case.
        body: The whole body.
        task: The URL's task; None if the URL has none, and the task follows from the body and the parameters.

    Raises:
        RequestError: for anything that cannot be read; no other exception is raised.
    """
    pairs = read_query(query)
    content = _Content.read(headers.get("content-type", ""), body, has_shape=any(n == "shape" for n, _ in pairs))
    parameters = Parameters([*pairs, *content.parameters])
    inferred = task or _infer_task(content, parameters)
    read = _read_decode if inferred == "decode" else _read_encode
    request = read(content, parameters, headers.get("accept", ""))
    if task is None and isinstance(request, DecodeRequest) and not _asks_for_decode(parameters):
        _refuse_pixels(request.latents)
    return request


def is_raw_tensor(content_type: str) -> bool:
    """Return whether a body of this type is a tensor's raw bytes, which :func:`read_request` need not decode."""
    return content_type.partition(";")[0].strip().lower() == BINARY


@dataclass(frozen=True, slots=True)
class _Content:
    """The decoded content of a body: a picture or video file, the raw bytes of a tensor, or named tensors."""

    data: bytes
    is_picture: bool = False
    is_video: bool = False
    parameters: tuple[tuple[str, Any], ...] = ()
    scales_by_default: bool = False
    tensors: Mapping[str, WireTensor] | None = None

    @classmethod
    def read(cls, content_type: str, body: bytes, *, has_shape: bool) -> _Content:
        if is_raw_tensor(content_type):
            return cls(body)
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type in (BASE64, JSON):
            return cls._from_json(body, media_type, has_shape=has_shape)
        if media_type == SAFETENSORS:
            return cls(b"", tensors=read_inpainting(body))
        # If the type is missing, as in diffusers' remote_encode, or a tool's default, such as curl's form type,
        # the content decides.  A shape means a tensor, even if its first bytes look like a picture's.
        if media_type.startswith("multipart/"):
            raise UnsupportedMedia(
                "forms are not read",
                saw=media_type[:_SHOWN],
                expected="the file alone as the body",
                hint="curl --data-binary @picture.png in place of -F; in Python's requests data=, not files=",
            )
        if has_shape and not media_type.startswith(("image/", "video/")):
            return cls(body)
        if sniff_picture(body) is not None:
            return cls(body, is_picture=True)
        if sniff_video(body) is not None:
            return cls(body, is_video=True)
        other = name_format(body)
        raise UnsupportedMedia(
            "the body is neither a picture nor a tensor nor a video that is read here",
            saw=f"{f'{other}, ' if other else ''}{media_type[:_SHOWN] or 'no Content-Type'},"
            f" {len(body)} bytes beginning with {body[:12]!r}",
            expected="a PNG, JPEG, WebP, MP4, WebM or GIF file, or a tensor with `shape` and `dtype` in the query"
            f" and Content-Type {BINARY}",
            hint=_hint_for(media_type, body, other),
        )

    @classmethod
    def _from_json(cls, body: bytes, media_type: str, *, has_shape: bool) -> _Content:
        data, parameters = read_json_body(body)
        is_file = not has_shape and "shape" not in parameters
        return cls(
            data,
            is_picture=is_file and sniff_picture(data) is not None,
            is_video=is_file and sniff_video(data) is not None,
            parameters=tuple(parameters.items()),
            scales_by_default=media_type == JSON,
        )


def _hint_for(media_type: str, body: bytes, other: str | None) -> str | None:
    """Return what to try for a body of no known kind; ``other`` is the name of its format."""
    if other:
        return "saving it as PNG"
    if body.lstrip()[:1] == b"{":
        return f"Content-Type: {JSON}, for a body in JSON"
    if media_type == _FORM:
        return "curl --data-binary @FILE in place of -d, which removes line breaks and zeros"
    return None


def _infer_task(content: _Content, parameters: Parameters) -> Task:
    """Return the task: files are encoded, latents decoded.  Three channels are pixels: no latents have three.

    A parameter that only decoding has decides first, because three packed latents, (3, S, C), look like one
    picture.
    """
    is_file = content.is_picture or content.is_video
    if content.tensors is not None or (not is_file and _asks_for_decode(parameters)):
        return "decode"
    shape = parameters.shape() or ()
    has_three_channels = len(shape) in (3, 4) and (
        shape[-3] == 3 or (shape[-1] == 3 and parameters.dtype() == "uint8")
    )
    is_film = len(shape) == 5 and shape[1] == 3
    return "encode" if is_file or has_three_channels or is_film else "decode"


def _asks_for_decode(parameters: Parameters) -> bool:
    return any(name in parameters for name in _DECODE_ONLY)


def _refuse_pixels(tensor: WireTensor) -> None:
    """Refuse a picture with alpha, which would be decoded because it has four channels.

    Latents have values around zero; float pixels are in [0, 1].  A constant tensor may be either, and is decoded.
    """
    if len(tensor.shape) not in (3, 4) or tensor.shape[-3] != 4:
        return
    one = _BITS_OF_ONE.get(tensor.dtype)
    if one is not None:
        # As integers, the bits of positive floats sort like the floats, and those of negative floats are larger.
        bits = memoryview(tensor.data).cast(one[0])
        bits = bits[:: 1 + len(bits) // _LOOKED_AT]
        if not min(bits) < max(bits) <= one[1]:
            return
    raise RequestError(
        "this looks like a picture with alpha and not like latents",
        saw=f"four channels of {tensor.dtype}" + ("" if one is None else ", all numbers within 0 to 1"),
        expected="latents, which lie around 0, or pixels of three channels",
        hint="the three colours without alpha, or POST /v1/{model}/decode if these are latents",
        cause="pixels-as-latents",
    )


def _read_decode(content: _Content, parameters: Parameters, accept: str) -> DecodeRequest:
    parameters.refuse_unknown(DECODE_PARAMETERS)
    if content.is_picture or content.is_video:
        kind = "picture" if content.is_picture else "video"
        raise UnsupportedMedia(
            f"a {kind} cannot be decoded",
            saw=f"a {kind} file",
            expected="latents as a tensor",
            hint=f"the encode endpoint for {kind}s",
            cause="pixels-as-latents",
        )
    accepted = media_types(accept)
    output, picture_format, video_format = _choose_output(parameters, accepted)
    tensors = _read_tensors(content, parameters)
    return DecodeRequest(
        latents=tensors["latents"],
        image=tensors.get("image"),
        mask=tensors.get("mask"),
        scaling=_read_scaling(parameters, scales_by_default=content.scales_by_default),
        output=output,
        picture_format=picture_format,
        quality=parameters.integer("quality", least=1, most=100) or DEFAULT_QUALITY,
        envelope=_envelope(accepted),
        height=parameters.integer("height", least=1),
        width=parameters.integer("width", least=1),
        preview=parameters.boolean("preview") or False,
        metadata=parameters.boolean("metadata") or False,
        video=read_video_options(parameters, video_format),
        **read_decoder_parameters(parameters),
    )


def _read_encode(content: _Content, parameters: Parameters, accept: str) -> EncodeRequest:
    parameters.refuse_unknown(ENCODE_PARAMETERS)
    if content.tensors is not None:
        raise UnsupportedMedia("a safetensors body is decoded", saw=SAFETENSORS, expected="a picture or a tensor")
    file = PictureFile if content.is_picture else VideoFile if content.is_video else None
    return EncodeRequest(
        image=_read_tensor(content, parameters) if file is None else file(content.data),
        scaling=_read_scaling(parameters, scales_by_default=False),
        value_range=parameters.choice("value_range", _VALUE_RANGES) or "auto",
        sample=parameters.boolean("sample") or False,
        seed=parameters.integer("seed", least=0),
        moments=parameters.boolean("moments") or False,
        drop_frames=parameters.boolean("drop_frames") is not False,
        envelope=_envelope(media_types(accept)),
    )


def _read_tensors(content: _Content, parameters: Parameters) -> Mapping[str, WireTensor]:
    """Return the latents, and what is beside them."""
    if content.tensors is None:
        return {"latents": _read_tensor(content, parameters)}
    said = next((name for name in _OF_A_TENSOR if name in parameters), None)
    if said is not None:
        raise RequestError("the tensors of a safetensors body have this themselves", saw=f"{said} in the query")
    return content.tensors


def _read_tensor(content: _Content, parameters: Parameters) -> WireTensor:
    shape, dtype = parameters.shape(), parameters.dtype()
    if shape is None or dtype is None:
        raise RequestError(
            "a tensor needs its shape and its dtype",
            saw=f"shape {list(shape) if shape else 'missing'}, dtype {dtype or 'missing'}",
            expected="for example shape=1&shape=4&shape=64&shape=64&dtype=float16",
        )
    return WireTensor(dtype, shape, content.data, parameters.boolean("channels_last") or False)


def _read_scaling(parameters: Parameters, *, scales_by_default: bool) -> Scaling:
    return Scaling.of(
        parameters.boolean("do_scaling"),
        parameters.number("scaling_factor"),
        parameters.number("shift_factor"),
        scales_by_default=scales_by_default,
    )


def media_types(accept: str) -> list[str]:
    """Return the media types of an Accept header in order of preference, without wildcards."""
    weighted: list[tuple[float, str]] = []
    for part in accept.split(",", _MAX_ACCEPTED)[:_MAX_ACCEPTED]:
        media_type, *options = (piece.strip().lower() for piece in part.split(";", _MAX_OPTIONS)[:_MAX_OPTIONS])
        weight = 1.0
        for option in options:
            if option.startswith("q="):
                try:
                    weight = float(option[2:])
                except ValueError:
                    weight = 0.0
        media_type = BINARY if media_type == "tensor/*" else media_type
        if media_type and "*" not in media_type and weight > 0:
            weighted.append((weight, media_type))
    return [media_type for _, media_type in sorted(weighted, key=lambda pair: -pair[0])]


def _envelope(accepted: Sequence[str]) -> Envelope:
    return "base64" if accepted and accepted[0] in (BASE64, JSON) else "binary"


def _choose_output(
    parameters: Parameters, accepted: Sequence[str]
) -> tuple[Output, PictureFormat, VideoFormat | None]:
    """Combine ``output_type``, the content, and ``Accept``, its form: "pil" as a tensor means floats in [0, 1]."""
    wanted = accepted[0] if accepted else ""
    wants_tensor = wanted.startswith("tensor/") or wanted == JSON
    output_type = parameters.choice("output_type", _OUTPUT_TYPES)
    partial = parameters.boolean("partial_postprocess") or False
    asked = parameters.choice("image_format", _PICTURE_FORMATS) or "jpeg"
    picture_format: PictureFormat = next((_PICTURE_TYPES[t] for t in accepted if t in _PICTURE_TYPES), asked)
    if output_type is None:
        output_type = "pt" if wants_tensor else _VIDEO_TYPES.get(wanted, "pil")
    if output_type in MEDIA_TYPES:
        return "video", asked, cast("VideoFormat", output_type)
    if output_type == "pt":
        return "pixels" if partial else "signed", picture_format, None
    return "unit" if wants_tensor else "picture", picture_format, None
