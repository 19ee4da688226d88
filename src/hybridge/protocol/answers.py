"""Convert TensorAnswer and FileAnswer to and from HTTP bytes."""

from __future__ import annotations

import base64
import binascii
import json

from ..errors import BadAnswer, RequestError
from .messages import Answer, FileAnswer, HttpResponse, TensorAnswer
from .picture_files import sniff_picture
from .requests import BASE64, BINARY
from .tensor import ITEM_BYTES, WireTensor, unknown_dtype
from .video_formats import sniff_video

#: Headers that belong to the answer.  A browser hides response headers from a page unless they are listed.
EXPOSED_HEADERS = (
    "shape",
    "dtype",
    "channels-last",
    "hybridge-model",
    "hybridge-inferred",
    "hybridge-warning",
    "hybridge-findings",
    "hybridge-plan",
    "hybridge-receipt",
    "hybridge-cache",
    "hybridge-frames",
    "server-timing",
)


def write_answer(answer: Answer) -> HttpResponse:
    """Return the answer as a 200 response.

    A binary tensor has its shape as a JSON list in the header ``shape`` and its dtype's bare name in ``dtype``,
    because diffusers reads exactly these.
    """
    if isinstance(answer, FileAnswer):
        return HttpResponse(200, {"content-type": answer.media_type}, answer.data)
    tensor = answer.tensor
    about = {"shape": json.dumps(list(tensor.shape)), "dtype": tensor.dtype}
    if tensor.channels_last:
        about["channels-last"] = "True"
    if answer.envelope == "binary":
        return HttpResponse(200, {"content-type": BINARY, **about}, bytes(tensor.data))
    parameters = {"shape": list(tensor.shape), "dtype": tensor.dtype}
    document = {"inputs": base64.b64encode(tensor.data).decode("ascii"), "parameters": parameters}
    return HttpResponse(200, {"content-type": BASE64, **about}, json.dumps(document).encode())


def _sniff_file(data: bytes) -> str | None:
    return sniff_video(data) or sniff_picture(data)


def read_answer(response: HttpResponse) -> Answer:
    """Return a server's answer from a response with status 200.

    A file is recognised by its first bytes if its type is missing or wrong: the pilot's servers sent MP4 as
    ``text/plain``.

    Raises:
        BadAnswer: when it is not an answer of a hybridge server, or is truncated.
    """
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in (BINARY, BASE64):
        is_file = media_type.startswith(("image/", "video/"))
        file_type = media_type if is_file else _sniff_file(response.body)
        if file_type:
            return FileAnswer(response.body, file_type)
    channels_last = response.headers.get("channels-last", "").lower() == "true"
    try:
        if media_type == BASE64:
            document = json.loads(response.body)
            about = document["parameters"]
            data = base64.b64decode(document["inputs"], validate=True)
            return TensorAnswer(_numbers(about["dtype"], about["shape"], data, channels_last), "base64")
        if media_type == BINARY:
            shape = json.loads(response.headers["shape"])
            return TensorAnswer(_numbers(response.headers["dtype"], shape, response.body, channels_last))
    except RequestError as error:
        raise BadAnswer(
            "the answer does not fit its own shape",
            saw=error.saw,
            expected=error.expected,
            hint="once more, for it may have been cut short on the way; else a look at the server's version",
        ) from None
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError) as error:
        raise BadAnswer("the answer cannot be read", saw=f"{type(error).__name__}: {error}") from None
    raise BadAnswer(
        "the answer is not from a hybridge server",
        saw=f"{media_type or 'no Content-Type'}, beginning with {response.body[:60]!r}",
        expected=f"{BINARY}, {BASE64} or a picture",
        hint="check the address: a web page or a proxy may be answering",
    )


def _numbers(dtype: str, shape: list[int], data: bytes, channels_last: bool) -> WireTensor:
    """A tensor of latents or pixels."""
    if dtype not in ITEM_BYTES:
        raise unknown_dtype(dtype)
    return WireTensor(dtype, tuple(shape), data, channels_last)
