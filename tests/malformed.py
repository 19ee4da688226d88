"""Requests that are broken in some way, each from a seed, so that what one of them finds can be looked at again.

They begin as what real clients send (``golden/``) and are then spoilt: bytes flipped, lines dropped or doubled,
numbers blown up, framing contradicted.  Some stay valid; that is no harm.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from dataclasses import dataclass
from pathlib import Path

_GOLDEN = Path(__file__).parent / "golden"

#: Seeds that once found something; they run every time.
KEPT: tuple[int, ...] = ()

_SEVERAL = 3

_METHODS = [
    b"POST",
    b"GET",
    b"PUT",
    b"HEAD",
    b"OPTIONS",
    b"DELETE",
    b"CONNECT",
    b"TRACE",
    b"PATCH",
    b"PRI",
    b"",
    b"P" * 99,
]
_TARGETS = [
    b"/",
    b"*",
    b"",
    b"//",
    b"/\xff",
    b"/%00",
    b"/%zz",
    b"/v1/../../etc/passwd",
    b"http://other.example/",
    b"/k/",
    b"/k//",
    b"/k/%2e/v1/models",
    b"/v1/models?key=",
    b"/v1//decode",
    b"/v1/%ff/decode",
    b"/?" + b"a=" * 500,
    b"/" + b"x" * 70_000,
    b"/metrics",
    b"/openapi.json",
    b"/ready?x",
    b"/v1/sd-v1/decode?shape=[[[[",
    b"/predict?shape=1&shape=" + b"9" * 5000,
    b"/v1/sd-v1/decode?seed=1e999&quality=-1",
    b"/v1/sd-v1/encode?sample=True&seed=99999999999999999999",
]
_VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/9.9", b"", b"ICY", b"http/1.1"]
_HEADERS = [
    b"content-length: -1",
    b"content-length: 99999999999999999999",
    b"content-length: 5\r\ncontent-length: 6",
    b"content-length: 0x10",
    b"content-length: 3",
    b"content-length:",
    b"transfer-encoding: chunked",
    b"transfer-encoding: gzip",
    b"transfer-encoding: chunked\r\ncontent-length: 4",
    b"expect: 100-continue",
    b"connection: upgrade\r\nupgrade: websocket",
    b"connection: upgrade\r\nupgrade: h2c",
    b"connection: close",
    b"host:",
    b": empty",
    b"no colon",
    b" folded",
    b"x: \x00",
    b"x: \xff\xfe",
    b"\xff: x",
    b"x: " + b"y" * 40_000,
    b"\r\n".join(b"h%d: x" % i for i in range(150)),
    b"accept: " + b"image/png;q=1," * 300,
    b"accept: \xc3\x28;q=nan",
    b"content-type: application/json",
    b"content-type: tensor/binary",
    b"content-type: ;;;=",
    b"content-encoding: gzip",
    b"content-type: image/png",
    b"authorization: Basic !!!",
    b"authorization: Bearer \x7f",
    b"x-request-id: a b\x01",
    b"x-request-id: " + b"z" * 3000,
    b"traceparent: 00-zz",
    b"cookie: a=b",
    b"origin: null",
    b"range: bytes=0-1",
]
_BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"a"',
    b'{"inputs": null}',
    b'{"inputs": 1, "parameters": {"shape": {}}}',
    b"[" * 3000,
    b'{"inputs": "AAAA", "parameters": {"shape": [1e308], "dtype": "float32"}}',
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    b"\x00" * 1024,
    b"\xff" * 1024,
    b"5\r\nhello\r\n0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"-1\r\n",
    b"5;" + b"x" * 5000 + b"\r\nhello\r\n",
    b"0\r\n" + b"trailer: x\r\n" * 200,
    b"zz\r\n",
    b"5\r\nhel",
]


def _recorded() -> list[tuple[bytes, bytes, list[bytes], bytes]]:
    """Method, target, header lines and body of what clients sent."""
    requests = []
    for file in sorted(_GOLDEN.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines()[1:]:
            request = json.loads(line)
            headers = [f"{name}: {value}".encode() for name, value in request["headers"].items()]
            for path in ("/v1/sd-v1/decode", "/v1/sd-v1/encode", "/", "/predict"):
                target = f"{path}?{request['query']}".encode()
                requests.append((request["method"].encode(), target, headers, base64.b64decode(request["body"])))
    return requests


class Malformed:
    """Makes broken requests."""

    def __init__(self) -> None:
        self._recorded = _recorded()

    def request(self, seed: int) -> bytes:
        """The bytes to send for a seed; always the same."""
        chance = random.Random(seed)
        method, target, headers, body = chance.choice(self._recorded)
        version = b"HTTP/1.1"
        if len(body) > 4096:
            body = body[: chance.randrange(4096)]
        headers = [*headers, b"host: localhost", b"content-length: %d" % len(body)]
        for _ in range(chance.randint(1, _SEVERAL)):
            match chance.randrange(10):
                case 0:
                    method = chance.choice(_METHODS)
                case 1:
                    target = chance.choice(_TARGETS)
                case 2:
                    version = chance.choice(_VERSIONS)
                case 3 | 4:
                    headers.insert(chance.randrange(len(headers) + 1), chance.choice(_HEADERS))
                case 5:
                    headers.pop(chance.randrange(len(headers)))
                case 6 | 7:
                    body = chance.choice(_BODIES)
                    if chance.random() < 0.7:
                        headers = [line for line in headers if not line.startswith(b"content-length")]
                        headers.append(b"content-length: %d" % len(body))
                case 8:
                    target = _spoilt(target, chance)
                case 9:
                    body = _spoilt(body, chance)
            headers = headers or [b"host: localhost"]
        raw = b" ".join((method, target, version)) + b"\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body
        if chance.random() < 0.2:
            raw = _spoilt(raw, chance)
        if chance.random() < 0.1:
            raw = raw[: chance.randrange(1, len(raw) + 1)]
        return raw


def _spoilt(data: bytes, chance: random.Random) -> bytes:
    spoilt = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(spoilt) + 1)
        match chance.randrange(4):
            case 0:
                spoilt[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del spoilt[at : at + chance.randint(1, 9)]
            case 2:
                spoilt[at:at] = chance.randbytes(chance.randint(1, 9))
            case 3:
                spoilt[at:at] = chance.choice([b"\r\n", b"\x00", b"%", b"&", b"=", b"-", b"9" * 30, b"\r\n\r\n"])
    return bytes(spoilt)


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back until the server hung up, or said nothing for long enough."""

    status: int | None
    headers: dict[str, str]
    body: bytes
    hung: bool = False


async def ask(host: str, port: int, raw: bytes, *, patience_s: float) -> Answered:
    """Sends bytes and reads the first final answer."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(raw)
        try:
            return await asyncio.wait_for(_answer(reader, is_head=raw.startswith(b"HEAD ")), patience_s)
        except TimeoutError:
            return Answered(None, {}, b"", hung=True)
        except (ConnectionError, asyncio.IncompleteReadError):
            return Answered(None, {}, b"")
    finally:
        writer.transport.abort()


async def _answer(reader: asyncio.StreamReader, *, is_head: bool) -> Answered:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split()[1])
        if status >= 200:
            break
    headers = {}
    for line in filter(None, head[1:]):
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = b"" if is_head else await reader.readexactly(int(headers.get("content-length", 0)))
    return Answered(status, headers, body)
