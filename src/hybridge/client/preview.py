"""A picture in two steps over one response: an approximation at once, the full decode when it is done."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from ..errors import BadAnswer
from ..protocol import DecodeRequest, HttpResponse, PartsReader, read_answer
from . import blame
from .address import Address
from .flow import Flows, path_of
from .reply import Reply
from .steps import Arrived, Emit, Flow, More, Terms
from .values import Kind, from_wire

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Preview:
    """An approximation, at the size that it was made in.

    Attributes:
        picture: A PIL image.
        made_by: The tiny autoencoder that decoded it, or ``latent-rgb`` for a linear map of the latents.
    """

    picture: Image
    made_by: str


@dataclass(frozen=True, slots=True)
class Picture:
    """The full decode: what :meth:`Client.decode` gives for the same arguments."""

    value: Any


def preview_flow(flows: Flows, request: DecodeRequest, model: str | None, kind: Kind, terms: Terms) -> Flow[None]:
    """Emits a Preview and a Picture.

    Where the connection is lost after the preview, the picture is asked for again, alone.
    """
    until = flows.begin(terms)
    source: list[Address] = []

    def opened(arrived: Arrived, address: Address) -> None:
        source.append(address)
        if arrived.seconds is not None:
            raise BadAnswer(
                "the answer came in one piece",
                saw=arrived.headers.get("content-type", "no Content-Type"),
                expected="multipart/mixed",
            )

    yield from flows.exchange(flows.post(request, path_of(request, model), terms, is_parted=True), opened, until)
    address, reader, has_picture = source[-1], PartsReader(), False
    while True:  # to the end of the response, so that its connection can be used again
        data = yield More()
        if isinstance(data, httpx.RequestError) or not data:
            break
        try:
            parts = reader.feed(data)
        except BadAnswer as error:
            raise blame.named(error, address) from None
        for part in parts:
            reply = _reply(part, address)
            if part.headers.get("hybridge-part") == "preview":
                yield Emit(Preview(reply.picture(), part.headers.get("hybridge-preview", "")))
            else:
                yield Emit(Picture(_value(reply, request, kind)))
                has_picture = True
    if not has_picture:
        reply = yield from flows.answer(dataclasses.replace(request, preview=False), model, until)
        yield Emit(Picture(_value(reply, request, kind)))


def _reply(part: HttpResponse, address: Address) -> Reply:
    if part.status != httpx.codes.OK:
        raise blame.refusal(part, None, address)
    try:
        answer = read_answer(part)
    except BadAnswer as error:
        raise blame.named(error, address) from None
    return Reply(answer, part.headers, str(address), 0, len(part.body), 0.0)


def _value(reply: Reply, request: DecodeRequest, kind: Kind) -> Any:
    if request.output == "picture":
        return reply.picture()
    return reply.file() if request.output == "video" else from_wire(reply.tensor(), kind)
