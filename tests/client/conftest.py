"""Servers to talk to: one that answers as the wire says, in-process and on a socket, and one that misbehaves.

The answers are arithmetic on the latents, so that a test can tell what arrived in which order.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from hybridge.errors import HybridgeError
from hybridge.protocol import (
    DecodeRequest,
    EncodeRequest,
    FileAnswer,
    HttpResponse,
    PictureFile,
    Request,
    TensorAnswer,
    WireTensor,
    read_request,
    write_answer,
    write_failure,
)
from hybridge.protocol.media import read_picture, write_picture

#: What one latent pixel becomes on each side.
FACTOR = 8

#: Stands for a video: boxes of ISO 14496-12 without frames.
MP4 = b"\0\0\0\x10ftypmp42\0\0\0\0" + b"\0\0\0\x08moov" + b"\0\0\0\x08mdat"


@dataclass
class Seen:
    """One request as it came over the wire."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def request(self) -> Request:
        task = "encode" if self.path.endswith("encode") else "decode" if self.path.endswith("decode") else None
        return read_request(self.query, self.headers, self.body, task)


@dataclass
class Stub:
    """A server that decodes and encodes by arithmetic, after saying everything in ``first`` once."""

    first: list[HttpResponse] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    def answer(self, seen: Seen) -> HttpResponse:
        self.seen.append(seen)
        if self.first:
            return self.first.pop(0)
        if seen.method == "GET":
            document = {"models": [{"name": "sd-v1"}]} if seen.path.endswith("/v1/models") else {"status": "ok"}
            return HttpResponse(200, {"content-type": "application/json"}, json.dumps(document).encode())
        try:
            request = seen.request
            response = decode(request) if isinstance(request, DecodeRequest) else encode(request)
        except HybridgeError as error:
            return write_failure(error)
        return HttpResponse(response.status, {**response.headers, **self.headers}, response.body)

    def handle(self, request: httpx.Request) -> httpx.Response:
        """The stub as an in-process transport's handler."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        path, _, query = request.url.raw_path.decode().partition("?")
        response = self.answer(Seen(request.method, path, query, headers, request.read()))
        return httpx.Response(response.status, headers=response.headers, content=response.body)

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.handle)


def signed_pixels(request: DecodeRequest) -> np.ndarray:
    """(N, 3, H, W) of float32 in about [-1, 1]: the first three channels, scaled and enlarged."""
    latents = request.latents.to_numpy().astype(np.float32)
    if latents.ndim == 3:  # packed: the size decides, and the numbers are spread over the picture
        height, width = request.height // FACTOR, request.width // FACTOR
        flat = latents.reshape(latents.shape[0], -1)[:, : height * width]
        latents = np.repeat(flat.reshape(-1, 1, height, width), 4, axis=1)
    if latents.ndim == 5:  # one video: its frames become the batch
        latents = latents[0].transpose(1, 0, 2, 3)
    if request.scaling.by == "given":
        latents = latents / request.scaling.scaling_factor + (request.scaling.shift_factor or 0)
    elif request.scaling.by == "model":
        latents = latents * 2
    return latents[:, :3].repeat(FACTOR, axis=2).repeat(FACTOR, axis=3)


def decode(request: DecodeRequest) -> HttpResponse:
    is_video = len(request.latents.shape) == 5
    signed = signed_pixels(request)
    unit = np.clip(signed / 2 + 0.5, 0, 1)
    pixels = WireTensor.from_numpy((unit * 255).round().astype(np.uint8).transpose(0, 2, 3, 1))
    if request.output == "video":
        return write_answer(FileAnswer(MP4, "video/mp4"))
    if request.output == "picture":
        one = WireTensor("uint8", (1, *pixels.shape[1:]), pixels.data[: pixels.nbytes // pixels.shape[0]])
        return write_answer(write_picture(one, request.picture_format, quality=request.quality))
    if request.output == "pixels":
        return write_answer(TensorAnswer(pixels))
    floats = unit if request.output == "unit" else signed
    if request.output == "signed" and is_video:
        floats = floats.transpose(1, 0, 2, 3)[None]
    return write_answer(TensorAnswer(like(request.latents, floats)))


def encode(request: EncodeRequest) -> HttpResponse:
    """(N, 4, H/8, W/8): every eighth pixel's red, and the seed where one is drawn."""
    image = request.image
    if isinstance(image, PictureFile):
        image = read_picture(image.data, max_pixels=10**6)
    pixels = image.to_numpy().astype(np.float32)
    if image.dtype == "uint8":
        pixels = pixels.transpose(0, 3, 1, 2) / 255
    red = pixels[:, :1, ::FACTOR, ::FACTOR] * (request.scaling.scaling_factor or 1)
    latents = np.repeat(red, 4, axis=1) + (request.seed or 0)
    return write_answer(TensorAnswer(WireTensor.from_numpy(latents)))


def like(latents: WireTensor, floats: np.ndarray) -> WireTensor:
    """``floats`` in the latents' dtype, as a server whose weights have it answers."""
    if latents.dtype != "bfloat16":
        return WireTensor.from_numpy(floats.astype(latents.dtype))
    high_halves = (np.ascontiguousarray(floats, dtype="<f4").view("<u4") >> 16).astype("<u2")
    return WireTensor("bfloat16", floats.shape, high_halves.tobytes())


@pytest.fixture
def stub() -> Stub:
    return Stub()


Talk = Callable[[http.server.BaseHTTPRequestHandler, bytes], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Talk], str]]:
    """Starts servers on sockets; each is given what to do with a request and its body, and has a URL."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(talk: Talk) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                talk(self, self.rfile.read(int(self.headers.get("content-length", 0))))

            do_GET = do_POST  # noqa: N815 - http.server's name

            def log_message(self, *args: object) -> None:
                """Says nothing."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def stub_url(serve: Callable[[Talk], str], stub: Stub) -> str:
    """The stub on a socket."""

    def talk(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        url = urlsplit(handler.path)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        response = stub.answer(Seen(handler.command, url.path, url.query, headers, body))
        handler.send_response(response.status)
        for name, value in {**response.headers, "content-length": str(len(response.body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(response.body)

    return serve(talk)
