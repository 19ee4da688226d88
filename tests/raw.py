"""Requests as bytes on a socket, for what no HTTP library would send, and an application that repeats them."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from urllib.parse import urlsplit

BODY = b"x" * 300
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"

UPGRADES = {
    "h2c of curl": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: eA==\r\n",
    "nonsense": b"upgrade: x\r\nconnection: keep-alive\r\nconnection: a,UPGRADE ,b\r\n",
    "to several": b"connection: upgrade\r\nupgrade: h2c\r\nupgrade: websocket, TLS/1.3\r\n",
    "proxy-connection": b"proxy-connection: upgrade\r\nupgrade: h2c\r\n",
    "without connection": b"upgrade: h2c\r\n",
    "without upgrade": b"connection: upgrade\r\n",
}


class Echo:
    """Answers with what it was asked: method, path, headers, and the body unless the path is /early.

    Attributes:
        gate: Lets /slow answer.
        paths: Of all requests that it has seen.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.paths: list[str] = []

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        self.paths.append(scope["path"])
        told = [name.decode() + ": " + value.decode("latin-1") for name, value in scope["headers"]]
        body = b""
        if scope["path"] == "/slow":
            await asyncio.to_thread(self.gate.wait, 20)
        while scope["path"] != "/early":
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        answer = {"method": scope["method"], "path": scope["path"], "headers": told, "body": body.decode("latin-1")}
        content = json.dumps(answer).encode()
        length = str(len(content)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": content})


class Peer:
    """A raw connection, and the answers on it one after the other."""

    def __init__(self, server: str) -> None:
        url = urlsplit(server)
        self.socket = socket.create_connection((url.hostname, url.port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict]:
        """The next final answer; (0, {}) where the server hung up."""
        while True:
            line = self.file.readline()
            if not line:
                return 0, {}
            status, length = int(line.split()[1]), 0
            while (header := self.file.readline().strip()) != b"":
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            body = self.file.read(length)
            if status >= 200:
                return status, json.loads(body)

    def hung_up(self) -> bool:
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True


def post(path: bytes = b"/first", *, headers: bytes = b"", length: int | None = len(BODY)) -> bytes:
    framing = b"content-length: %d" % length if length is not None else b"transfer-encoding: chunked"
    return b"POST " + path + b" HTTP/1.1\r\nhost: x\r\n" + headers + framing + b"\r\n\r\n"


#: Requests whose end two readers could see in different places: headers.
AMBIGUOUS = {
    "both lengths": b"content-length: 4\r\ntransfer-encoding: chunked",
    "both lengths, turned": b"transfer-encoding: chunked\r\ncontent-length: 4",
    "two lengths": b"content-length: 4\r\ncontent-length: 5",
    "twice the same": b"content-length: 4\r\ncontent-length: 4",
    "a list of lengths": b"content-length: 4, 4",
    "a sign": b"content-length: +4",
    "hexadecimal": b"content-length: 0x4",
    "no number": b"content-length:",
    "too large a number": b"content-length: 99999999999999999999",
    "identity": b"transfer-encoding: identity",
    "identity and a length": b"transfer-encoding: identity\r\ncontent-length: 4",
    "chunked twice": b"transfer-encoding: chunked, chunked",
    "chunked and identity": b"transfer-encoding: chunked\r\ntransfer-encoding: identity",
    "compressed": b"transfer-encoding: gzip, chunked",
    "identity, chunked": b"transfer-encoding: identity, chunked",
    "identity and chunked": b"transfer-encoding: identity\r\ntransfer-encoding: chunked",
    "a tab behind": b"transfer-encoding: chunked\t",
    "a vertical tab": b"transfer-encoding: \x0bchunked",
    "a space before the colon": b"transfer-encoding : chunked",
    "quoted": b'transfer-encoding: "chunked"',
    "with a parameter": b"transfer-encoding: chunked;q=1",
    "folded": b"transfer-encoding:\r\n chunked",
    "a fold elsewhere": b"x: a\r\n b\r\ncontent-length: 4",
    "a bare line feed": b"x: a\ncontent-length: 4",
    "a bare return": b"x: a\rcontent-length: 4",
    "NUL in a value": b"x: a\x00b\r\ncontent-length: 4",
    "NUL in a name": b"x\x00: a\r\ncontent-length: 4",
    "two hosts": b"host: y\r\ncontent-length: 4",
}

CHUNKS = {
    "a bare line feed": b"5\nhello\n0\n\n",
    "a line feed behind an extension": b"5;a\nhello\r\n0\r\n\r\n",
    "hexadecimal with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a space": b"5 \r\nhello\r\n0\r\n\r\n",
    "overflow": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "more than was said": b"5\r\nhello!\r\n0\r\n\r\n",
    "a length behind": b"0\r\ncontent-length: 5\r\n\r\n",
    "a coding behind": b"0\r\ntransfer-encoding: chunked\r\n\r\n",
}
