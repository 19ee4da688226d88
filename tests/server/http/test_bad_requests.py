"""Everything that should not have been sent: a 4xx with JSON, and the server goes on."""

from __future__ import annotations

import base64
import io
import json
import math
import socket
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image
from starlette.requests import Request

from hybridge.engine import Engine
from hybridge.server.app import create_app
from hybridge.server.http.request_headers import query_of
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running
from hybridge.server.settings import Settings

BINARY = {"content-type": "tensor/binary"}
GOOD_SHAPE = {"shape": [1, 4, 8, 8], "dtype": "float32"}
GOOD_BODY = bytes(4 * 4 * 8 * 8)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG file with whatever size its header claims."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def whole_png() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def server(engines: dict[str, Engine]) -> Iterator[str]:
    settings = Settings(max_body_mib=2, max_pixels=800 * 800, max_batch=4)
    with running(create_app(LocalBackend({"sd-v1": engines["sd-v1"]}), settings)) as address:
        yield address


def assert_refused(response: httpx.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    message = response.json()["error"]
    for word in words:
        assert word in message


DECODE = [
    ("body too short", GOOD_SHAPE, GOOD_BODY[:-4], 400, ("1020 bytes", "1024 bytes")),
    ("body too long", GOOD_SHAPE, GOOD_BODY + b"x", 400, ("1025 bytes", "1024 bytes")),
    ("another dtype would fit", GOOD_SHAPE, GOOD_BODY[:512], 400, ("dtype=float16, which fits",)),
    ("empty body", GOOD_SHAPE, b"", 400, ("0 bytes",)),
    ("negative side", {**GOOD_SHAPE, "shape": [1, 4, -8, 8]}, GOOD_BODY, 400, ("impossible shape", "-8")),
    ("zero side", {**GOOD_SHAPE, "shape": [1, 4, 0, 8]}, b"", 400, ("impossible shape",)),
    ("absurd shape", {**GOOD_SHAPE, "shape": [10**17, 10**17, 10**17]}, GOOD_BODY, 400, ("bytes",)),
    ("many axes", {**GOOD_SHAPE, "shape": [1] * 9}, GOOD_BODY, 400, ("1 to 5 axes",)),
    ("a shape of words", {**GOOD_SHAPE, "shape": "many"}, GOOD_BODY, 400, ("shape is not a whole number",)),
    ("no shape", {"dtype": "float32"}, GOOD_BODY, 400, ("shape missing",)),
    ("no dtype", {"shape": [1, 4, 8, 8]}, GOOD_BODY, 400, ("dtype missing",)),
    ("unknown dtype", {**GOOD_SHAPE, "dtype": "float64"}, GOOD_BODY, 400, ("unknown dtype", "bfloat16")),
    ("zero scaling", {**GOOD_SHAPE, "scaling_factor": 0}, GOOD_BODY, 400, ("above zero", "0.18215")),
    ("scaling that is no number", {**GOOD_SHAPE, "scaling_factor": "nan"}, GOOD_BODY, 400, ("finite",)),
    ("shift alone", {**GOOD_SHAPE, "shift_factor": 1}, GOOD_BODY, 400, ("shift_factor without scaling_factor",)),
    ("wrong channels", {**GOOD_SHAPE, "shape": [1, 16, 4, 4]}, GOOD_BODY, 400, ("16 latent channels",)),
    ("a video", {**GOOD_SHAPE, "shape": [1, 4, 1, 8, 8]}, GOOD_BODY, 400, ("videos need a video model",)),
    ("unknown output", {**GOOD_SHAPE, "output_type": "avi"}, GOOD_BODY, 400, ("pil, pt, mp4, webm, gif",)),
    ("fps 0", {**GOOD_SHAPE, "output_type": "mp4", "fps": 0}, GOOD_BODY, 400, ("1 to 240",)),
    ("fps 10⁹", {**GOOD_SHAPE, "output_type": "mp4", "fps": 10**9}, GOOD_BODY, 400, ("1 to 240",)),
    ("fps of a picture", {**GOOD_SHAPE, "fps": 24}, GOOD_BODY, 400, ("output_type=mp4",)),
    ("another codec", {**GOOD_SHAPE, "output_type": "webm", "codec": "h264"}, GOOD_BODY, 400, ("output_type=mp4",)),
    ("unknown codec", {**GOOD_SHAPE, "output_type": "mp4", "codec": "divx"}, GOOD_BODY, 400, ("h264, hevc",)),
    (
        "too small for a codec",
        {**GOOD_SHAPE, "shape": [1, 4, 4, 4], "output_type": "mp4", "codec": "av1"},
        bytes(4 * 4 * 4 * 4),
        400,
        ("codec=h264",),
    ),
    ("unknown format", {**GOOD_SHAPE, "image_format": "bmp"}, GOOD_BODY, 400, ("image_format",)),
    ("no boolean", {**GOOD_SHAPE, "do_scaling": "maybe"}, GOOD_BODY, 400, ("True or False",)),
    ("a misspelt name", {**GOOD_SHAPE, "scaling_facter": 1}, GOOD_BODY, 400, ("Try: scaling_factor",)),
    ("twice", {**GOOD_SHAPE, "height": [8, 8]}, GOOD_BODY, 400, ("2 times",)),
    ("NaN", GOOD_SHAPE, b"\x00\x00\xc0\x7f" * 256, 400, ("nan at element 0",)),
    ("a batch as one picture", {**GOOD_SHAPE, "shape": [2, 4, 8, 4]}, GOOD_BODY, 400, ("a batch",)),
    ("a picture", {}, whole_png(), 400, ("shape missing",)),
    ("too long for JPEG", {**GOOD_SHAPE, "shape": [1, 4, 1, 8192]}, bytes(4 * 4 * 8192), 413, ("65500", "png")),
    (
        "too long for WebP",
        {**GOOD_SHAPE, "shape": [1, 4, 1, 2048], "image_format": "webp"},
        bytes(4 * 4 * 2048),
        413,
        ("16383", "png"),
    ),
    (
        "too long for a video",
        {**GOOD_SHAPE, "shape": [1, 4, 1, 2049], "output_type": "mp4"},
        bytes(4 * 4 * 2049),
        413,
        ("16384", "output_type=pt"),
    ),
    (
        "overflow by scaling",
        {**GOOD_SHAPE, "scaling_factor": 1e-300},
        b"\x00\x00\x80\x3f" * 256,
        400,
        ("once scaled",),
    ),
    (
        "overflow by shift",
        {**GOOD_SHAPE, "scaling_factor": 1, "shift_factor": 1e38},
        GOOD_BODY,
        400,
        ("once scaled",),
    ),
    (
        "too many pixels",
        {**GOOD_SHAPE, "shape": [1, 4, 101, 101]},
        bytes(4 * 4 * 101 * 101),
        413,
        ("--max-pixels",),
    ),
    ("too large a batch", {**GOOD_SHAPE, "shape": [8, 4, 4, 2]}, GOOD_BODY, 413, ("at most 4",)),
    ("too large a body", GOOD_SHAPE, bytes(3 * 1024**2), 413, ("--max-body-mib",)),
]


@pytest.mark.parametrize(
    ("query", "body", "status", "words"), [row[1:] for row in DECODE], ids=[r[0] for r in DECODE]
)
def test_decode(server, query, body, status, words) -> None:
    response = httpx.post(f"{server}/v1/sd-v1/decode", params=query, content=body, headers=BINARY)
    assert_refused(response, status, *words)


ENCODE = [
    ("truncated PNG", whole_png()[:200], 400, "cannot be read"),
    ("a JPEG's first bytes only", b"\xff\xd8\xff\xe0", 400, "cannot be read"),
    ("a decompression bomb", png(60_000, 60_000), 413, "too large"),
    ("a PNG that claims a gigapixel", png(30_000, 30_000), 413, "too large"),
    ("larger than the limit", png(1024, 1024), 413, "--max-pixels"),
    ("smaller than one latent", png(7, 64, bytes(64 * 22)), 400, "at least 8×8"),
    ("neither picture nor tensor", b"hello", 415, "neither a picture nor a tensor"),
    ("nothing", b"", 415, "neither a picture nor a tensor"),
    ("a GIF", b"GIF89a" + bytes(40), 415, "encodes pictures"),
    ("an MP4", b"\0\0\0\x18ftypisom" + bytes(40), 415, "encodes pictures"),
]


@pytest.mark.parametrize(("body", "status", "word"), [row[1:] for row in ENCODE], ids=[r[0] for r in ENCODE])
def test_encode(server, body, status, word) -> None:
    assert_refused(httpx.post(f"{server}/v1/sd-v1/encode", content=body), status, word)


def test_a_picture_that_was_resized_is_told_of(server) -> None:
    file = io.BytesIO()
    Image.new("RGB", (61, 67)).save(file, "JPEG")
    response = httpx.post(f"{server}/v1/sd-v1/encode", content=file.getvalue())
    assert response.headers["shape"] == "[1, 4, 8, 7]"
    assert "61x67 pixels was resized to 56x64" in response.headers["hybridge-warning"]
    response = httpx.post(f"{server}/v1/sd-v1/encode", content=whole_png())
    assert "hybridge-warning" not in response.headers


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "not JSON"),
        (b"[" * 60_000, "not JSON"),
        (b"[]", "no object"),
        (b"{}", "another form"),
        (json.dumps({"inputs": "no base64!", "parameters": {}}).encode(), "not base64"),
        (json.dumps({"inputs": base64.b64encode(GOOD_BODY).decode(), "parameters": [1]}).encode(), "another form"),
    ],
    ids=["cut", "deep", "list", "empty", "not base64", "parameters"],
)
@pytest.mark.parametrize("content_type", ["application/json", "tensor/base64"])
def test_json(server, body, word, content_type) -> None:
    response = httpx.post(
        f"{server}/v1/sd-v1/decode", params=GOOD_SHAPE, content=body, headers={"content-type": content_type}
    )
    assert_refused(response, 400, word)


@pytest.mark.parametrize(
    ("shape", "dtype", "status", "word"),
    [
        ([1, 4, 64, 64], "float32", 400, "the decode endpoint"),
        ([3, 63, 64], "float32", 400, "multiples of 8"),
        ([1, 1, 3, 64, 64], "float32", 400, "not an image tensor"),
        ([64], "float32", 400, "not an image tensor"),
        ([1, 64, 64, 3], "float32", 400, "not an image tensor"),
        ([5, 8, 8, 3], "uint8", 413, "at most 4"),
        ([1, 3, 8, 80_008], "uint8", 413, "--max-pixels"),
    ],
)
def test_image_tensors_are_judged_by_their_shape(server, shape, dtype, status, word) -> None:
    body = bytes(math.prod(shape) * {"float32": 4, "uint8": 1}[dtype])
    response = httpx.post(f"{server}/v1/sd-v1/encode", params={"shape": shape, "dtype": dtype}, content=body)
    assert_refused(response, status, word)


def test_unknown_model(server) -> None:
    assert_refused(httpx.post(f"{server}/v1/sdxl/decode", content=b""), 404, "sd-v1", "hybridge serve sdxl")
    assert_refused(httpx.get(f"{server}/v1/models/sd-v2"), 404, "Try: sd-v1")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/", 405)])
def test_unknown_paths_and_methods(server, method, path, status) -> None:
    assert_refused(httpx.request(method, server + path), status, "openapi.json")


def test_a_body_without_a_length_is_counted_as_it_comes(server) -> None:
    parts = (bytes(1024**2) for _ in range(3))
    assert_refused(httpx.post(f"{server}/v1/sd-v1/decode", params=GOOD_SHAPE, content=parts), 413, "too large")


def test_bytes_that_are_not_http_get_json_too(server) -> None:
    url = urlsplit(server)
    with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
        connection.sendall(b"\x00\x01\x02 hello\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"application/json" in head
    assert "error" in json.loads(body)


def test_a_bomb_takes_no_memory(engines) -> None:
    """900 million pixels would be 2.7 GB; refusing them must not allocate even one per cent of that."""
    from hybridge.errors import TooLarge
    from hybridge.protocol import EncodeRequest, PictureFile
    from hybridge.server.scheduling.limits import Limits
    from hybridge.server.scheduling.vae_job import admit

    request = EncodeRequest(PictureFile(png(30_000, 30_000)))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            admit(request, engines["sd-v1"].spec, Limits())
        assert tracemalloc.get_traced_memory()[1] < 1024**2
    finally:
        tracemalloc.stop()


def test_the_server_goes_on(server) -> None:
    """Runs last in this file, after everything above was thrown at the same server."""
    response = httpx.post(f"{server}/v1/sd-v1/decode", params=GOOD_SHAPE, content=GOOD_BODY, headers=BINARY)
    assert response.status_code == 200
    assert httpx.get(f"{server}/ready").status_code == 200


@pytest.mark.parametrize("host", ["x", "x#", "x?dtype=float16", "x/y", "[", "[::1", ""])
def test_a_host_does_not_change_the_query(host) -> None:
    """Starlette 0.40 puts both into one URL, which has no query behind ``x#`` and cannot be read behind ``[``."""
    scope = {"type": "http", "path": "/", "query_string": b"dtype=float32", "headers": [(b"host", host.encode())]}
    assert query_of(Request(scope)) == "dtype=float32"
