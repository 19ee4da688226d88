"""JSON bodies: every spelling of base64 that clients have, and bodies that would take memory or time."""

from __future__ import annotations

import base64
import codecs
import json
import tracemalloc

import pytest

from hybridge.errors import RequestError, TooLarge
from hybridge.protocol import EncodeRequest, PictureFile, json_bodies, read_request
from hybridge.protocol.json_bodies import read_json_body

DATA = bytes(range(256)) * 40 + b"\xfb\xff\xfe"
ENCODED = base64.b64encode(DATA).decode()
SHORT = bytes(range(250, 256)) + b"\xfb\xff"


def body(inputs: str, parameters: object = None) -> bytes:
    return json.dumps({"inputs": inputs, "parameters": parameters or {}}).encode()


@pytest.fixture(params=[1024, 2**20], ids=["many pieces", "one piece"])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(json_bodies, "_PIECE", request.param)
    return int(request.param)


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("data", [DATA, DATA[:-1], DATA[:-2], SHORT, SHORT[:-1], SHORT[:-2], b"a", b""])
def test_base64_in_every_spelling(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    lines = base64.encodebytes(data).decode()
    spellings = [
        body(text),
        body(text.rstrip("=")),
        body(base64.urlsafe_b64encode(data).decode()),
        body(base64.urlsafe_b64encode(data).decode().rstrip("=")),
        body(lines),
        body(lines.replace("\n", "\r\n")),
        body(lines).replace(b"\\n", b"\n"),  # a shell's, which JSON does not allow
        body(" " + text + " "),
        body("data:image/png;base64," + text),
        body("data:;base64," + text.rstrip("=")),
        body(text).replace(b"/", b"\\/"),  # PHP's
        body("data:image/png;base64," + text).replace(b"/", b"\\/"),
        body(text).replace(b"+", b"\\u002b").replace(b"=", b"\\u003D"),  # .NET's
        codecs.BOM_UTF8 + body(text),
    ]
    for spelling in spellings:
        assert read_json_body(spelling) == (data, {})


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize(
    "inputs",
    [
        "no base64!" * 2000,
        ENCODED[:-1] + "AA=",
        ENCODED + "====",
        ENCODED + "A",
        "====",
        "=",
        "A",
        "=" + ENCODED,
        "AA==" + ENCODED,
        ENCODED[:5000] + "ü" + ENCODED[5000:],
        ENCODED[:5000] + "\\" + ENCODED[5000:],
        ENCODED[:5000] + "\0" + ENCODED[5000:],
        "ü",
        "\ud800",
    ],
)
def test_what_is_not_base64_is_refused(inputs: str) -> None:
    for spelled in (body(inputs), json.dumps({"inputs": inputs}, ensure_ascii=False).encode("utf-8", "replace")):
        with pytest.raises(RequestError, match="`inputs` is not base64") as caught:
            read_json_body(spelled)
        assert len(str(caught.value)) < 300


def test_a_picture_in_a_data_uri_is_encoded() -> None:
    picture = b"\x89PNG\r\n\x1a\n" + bytes(9)
    inputs = "data:image/png;base64," + base64.b64encode(picture).decode()
    request = read_request("", {"content-type": "application/json"}, body(inputs))
    assert isinstance(request, EncodeRequest)
    assert request.image == PictureFile(picture)


@pytest.mark.parametrize(
    ("sent", "what"),
    [
        (body(ENCODED).decode().encode("utf-16"), "UTF-16"),
        (body(ENCODED).decode().encode("utf-16-le"), "UTF-16"),
        (body(ENCODED).decode().encode("utf-32"), "UTF-16 or UTF-32"),
        (body(ENCODED)[:-1] + b', "x": "\xff"}', "the byte 0xff"),
        (b'{"inputs": "YQ==", "inputs": "YQ=="}', "a key twice: saw 'inputs'"),
        (b'{"inputs": "YQ==", "parameters": {"shape": 1, "shape": 2}}', "a key twice: saw 'shape'"),
        (b'{"inputs": "YQ==", "parameters": {"scaling_factor": NaN}}', "saw NaN"),
        (b'{"inputs": "YQ==", "parameters": {"scaling_factor": -Infinity}}', "saw -Infinity"),
        (b'{"inputs": "YQ==", "parameters": {"seed": ' + b"9" * 5000 + b"}}", "a number of 5000 digits"),
        (b'{"inputs": "YQ==", "parameters": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "nested too deeply"),
        (body(ENCODED)[:-1], "not JSON"),
        (body(ENCODED)[:5000], "not JSON"),
        (body(ENCODED) + b"x", "not JSON"),
        (b"{'inputs': 'YQ=='}", "not JSON"),
    ],
)
def test_what_is_wrong_is_said(sent: bytes, what: str) -> None:
    with pytest.raises(RequestError, match=what) as caught:
        read_json_body(sent)
    assert len(str(caught.value)) < 400


MIB = 2**20
LARGE = {
    "objects": b'{"inputs": "YQ==", "parameters": {"x": [' + b"{}," * MIB + b"{}]}}",
    "objects before": b'{"parameters": {"x": [' + b"{}," * MIB + b'{}]}, "inputs": "YQ=="}',
    "small texts": b'{"inputs": "YQ==", "x": [' + b'"",' * MIB + b'""]}',
    "large texts": b'{"inputs": "YQ==", "x": [' + (b'"' + b"a" * 5000 + b'",') * 1000 + b'""]}',
    "spaces": b'{"inputs": "YQ==",' + b" " * 8 * MIB + b'"x": 1}',
    "digits": b'{"inputs": "YQ==", "x": ' + b"1" * 8 * MIB + b"}",
    "brackets": b"[" * 8 * MIB,
    "quotes": b'{"inputs": "' + b'\\"' * 4 * MIB + b'"}',
    "a long key": b'{"inputs": "YQ==", "' + b"k" * 8 * MIB + b'": 1}',
    "a long text beside": body(ENCODED)[:-1] + b', "prompt": "' + b"a cat " * MIB + b'"}',
}


@pytest.mark.parametrize("kind", LARGE)
def test_what_stands_beside_inputs_takes_no_memory(kind: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            read_json_body(LARGE[kind])
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()


def test_backslashes_alone_are_refused() -> None:
    with pytest.raises(RequestError):
        read_json_body(b'{"inputs": "' + b"\\" * 4 * MIB + b'"}')


def test_inputs_take_a_small_multiple_of_themselves() -> None:
    data = bytes(24 * MIB)
    sent = body(base64.b64encode(data).decode())
    tracemalloc.start()
    try:
        decoded, _ = read_json_body(sent)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(sent)
    finally:
        tracemalloc.stop()
    assert decoded == data


def test_a_placeholder_that_a_sender_writes_means_nothing() -> None:
    with pytest.raises(RequestError, match="not base64"):
        read_json_body(body("\x000"))
    with pytest.raises(TooLarge, match="a long text beside"):
        read_json_body(json.dumps({"inputs": "\x001", "x": ENCODED, "y": "\x000"}).encode())
