"""Write DecodeRequest and EncodeRequest as HTTP bytes: in the binary form, as a file, or as safetensors."""

from __future__ import annotations

from ..errors import RequestError
from .decoder_parameters import DECODER_PARAMETERS
from .inpainting import write_inpainting
from .messages import (
    DEFAULT_QUALITY,
    DecodeRequest,
    EncodeRequest,
    HttpRequest,
    Request,
    Scaling,
    VideoFile,
)
from .picture_files import sniff_picture
from .query import format_query
from .requests import BASE64, BINARY
from .safetensors_bytes import SAFETENSORS
from .tensor import WireTensor
from .video_formats import sniff_video
from .video_parameters import video_query

_ACCEPT_PICTURE = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


def write_request(request: Request) -> HttpRequest:
    """Write ``request`` so that :func:`.requests.read_request` returns an equal request."""
    return _write_decode(request) if isinstance(request, DecodeRequest) else _write_encode(request)


def _write_decode(request: DecodeRequest) -> HttpRequest:
    tensor_type = BINARY if request.envelope == "binary" else BASE64
    output_type, accept = {
        "picture": ("pil", _ACCEPT_PICTURE[request.picture_format]),
        "unit": ("pil", tensor_type),
        "signed": ("pt", tensor_type),
        "pixels": ("pt", tensor_type),
        "video": (request.video.format, request.video.media_type),
    }[request.output]
    latents, image, mask = request.latents, request.image, request.mask
    query: dict[str, object] = {
        **_scaling_query(request.scaling),
        "height": request.height,
        "width": request.width,
        "output_type": output_type,
        # The pilot's servers accepted only "jpg".
        "image_format": "jpg" if request.picture_format == "jpeg" else request.picture_format,
        "partial_postprocess": request.output == "pixels",
        "quality": None if request.quality == DEFAULT_QUALITY else request.quality,
        "preview": True if request.preview else None,
        "metadata": True if request.metadata else None,
        **video_query(request.video),
        **{name: getattr(request, name) for name in DECODER_PARAMETERS},
    }
    if image is None or mask is None:
        query = {**_tensor_query(latents), **query}
        return HttpRequest(format_query(query), {"content-type": BINARY, "accept": accept}, bytes(latents.data))
    body = write_inpainting(latents, image, mask)
    return HttpRequest(format_query(query), {"content-type": SAFETENSORS, "accept": accept}, body)


def _write_encode(request: EncodeRequest) -> HttpRequest:
    query: dict[str, object] = _scaling_query(request.scaling)
    if request.value_range != "auto":
        query["value_range"] = request.value_range
    if request.sample:
        query["sample"] = True
    query["seed"] = request.seed
    if request.moments:
        query["moments"] = True
    if not request.drop_frames:
        query["drop_frames"] = False
    accept = BINARY if request.envelope == "binary" else BASE64
    if isinstance(request.image, WireTensor):
        query |= _tensor_query(request.image)
        return HttpRequest(
            format_query(query), {"content-type": BINARY, "accept": accept}, bytes(request.image.data)
        )
    is_video = isinstance(request.image, VideoFile)
    media_type = (sniff_video if is_video else sniff_picture)(request.image.data)
    if media_type is None:
        raise RequestError(
            f"not a {'video' if is_video else 'picture'} file",
            saw=request.image.data[:12],
            expected="MP4, WebM or GIF" if is_video else "PNG, JPEG or WebP",
        )
    return HttpRequest(format_query(query), {"content-type": media_type, "accept": accept}, request.image.data)


def _tensor_query(tensor: WireTensor) -> dict[str, object]:
    # Only sent if true: other servers do not know the parameter.
    return {"shape": list(tensor.shape), "dtype": tensor.dtype, "channels_last": tensor.channels_last or None}


def _scaling_query(scaling: Scaling) -> dict[str, object]:
    if scaling.by == "none":
        # Sent explicitly: without it the meaning is the same, except in the oldest JSON form.
        return {"do_scaling": False}
    if scaling.by == "model":
        return {"do_scaling": True, "shift_factor": scaling.shift_factor}
    return {"scaling_factor": scaling.scaling_factor, "shift_factor": scaling.shift_factor}
