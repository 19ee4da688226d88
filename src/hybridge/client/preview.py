"""A picture in two steps in one response: first an approximation, then the full decode."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import httpx

from ..errors import BadAnswer, ClientError
from ..protocol import DecodeRequest, HttpResponse, PartsReader, read_answer
from . import transport_errors
from .address import Address
from .answer_limits import check, most_bytes
from .conversion import Kind
from .flow import Flows, converter, path_of
from .flow_types import Arrived, Emit, Flow, More, Terms
from .reply import Reply

if TYPE_CHECKING:
    from PIL.Image import Image

ValueT = TypeVar("ValueT")

#: Most parts of a response: far more than any server sends for one picture.
_MOST_PARTS = 64


@dataclass(frozen=True, slots=True)
class Preview:
    """An approximation of the picture, in the size in which it was made.

    Attributes:
        picture: A PIL image.
        made_by: The tiny autoencoder that decoded it, or ``latent-rgb`` for a linear map of the latents.
    """

    picture: Image
    made_by: str


@dataclass(frozen=True, slots=True)
class Picture(Generic[ValueT]):
    """The full decode: the result of :meth:`Client.decode` for the same arguments."""

    value: ValueT


def preview_flow(flows: Flows, request: DecodeRequest, model: str | None, kind: Kind, terms: Terms) -> Flow[None]:
    """Emit a Preview and a Picture.

    If the connection is lost after the preview, only the picture is requested again.
    """
    until, convert = flows.begin(terms), converter(request, kind)
    source: list[Address] = []

    def opened(arrived: Arrived, address: Address) -> None:
        source.append(address)
        if arrived.seconds is not None:
            raise BadAnswer(
                "the answer came in one piece",
                saw=arrived.headers.get("content-type", "no Content-Type"),
                expected="multipart/mixed",
            )

    yield from flows.exchange(
        flows.post(request, path_of(request, model), terms, opens="parts"), opened, until, model
    )
    address, reader, has_picture = source[-1], PartsReader(most_bytes(request)), False
    count = 0
    while True:  # read to the end of the response, so that its connection can be reused
        data = yield More()
        if isinstance(data, httpx.TimeoutException):
            raise flows.blamed(transport_errors.loss(data, address))
        if isinstance(data, httpx.RequestError) or not data:
            break
        try:
            for part in reader.feed(data):
                count += 1
                if count > _MOST_PARTS:
                    raise BadAnswer("the answer has no end", saw=f"{count} parts", expected="a preview, a picture")
                reply = _reply(part, address)
                if part.headers.get("hybridge-part") == "preview":
                    yield Emit(Preview(reply.picture(), flows.redact(part.headers.get("hybridge-preview", ""))))
                else:
                    check(request, reply.answer)
                    yield Emit(Picture(convert(reply)))
                    has_picture = True
        except BadAnswer as error:
            raise flows.blamed(transport_errors.named(error, address)) from None
        except ClientError as error:
            raise flows.blamed(error) from None
    if not has_picture:
        alone = dataclasses.replace(request, preview=False)
        yield Emit(Picture((yield from flows.answer(alone, model, until, convert))))


def _reply(part: HttpResponse, address: Address) -> Reply:
    if part.status != httpx.codes.OK:
        raise transport_errors.refusal(part, None, address)
    return Reply(read_answer(part), part.headers, str(address), 0, len(part.body), 0.0)
