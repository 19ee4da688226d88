"""A server of raw sockets that breaks HTTP, the wire, or the patience of whoever asks."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator

#: What a server does with a connection, after it has read a request; ``stop`` ends what would never end.
Behaviour = Callable[[socket.socket, threading.Event], None]

_CHUNK = b"10000\r\n" + bytes(0x10000) + b"\r\n"


class Hostile:
    """One behaviour on a port of its own, a thread for each connection."""

    def __init__(self, behave: Behaviour, *, reads: bool = True) -> None:
        self._behave = behave
        self._reads = reads
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[bytes] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Hostile:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._stop.is_set():
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._talk, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _talk(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        with connection, contextlib.suppress(OSError, ValueError):
            if self._reads:
                self.requests.append(read_request(connection))
            self._behave(connection, self._stop)


def read_request(connection: socket.socket) -> bytes:
    """A request's head and body."""
    seen = b""
    while b"\r\n\r\n" not in seen:
        seen += connection.recv(65536) or _gone()
    head, _, body = seen.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    left = (int(lengths[0].partition(b":")[2]) if lengths else 0) - len(body)
    while left > 0:
        left -= len(connection.recv(65536) or _gone())
    return head


def _gone() -> bytes:
    raise ValueError("the client is gone")


def says(
    status: int, headers: dict[str, str] | bytes, body: bytes = b"", *, promised: int | None = None
) -> Behaviour:
    """One answer, whose length may be a lie."""
    lines = headers if isinstance(headers, bytes) else "".join(f"{n}: {v}\r\n" for n, v in headers.items()).encode()
    length = len(body) if promised is None else promised
    head = f"HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n".encode() + lines + b"\r\n"
    return sends(head + body)


def sends(data: bytes) -> Behaviour:
    """These bytes, and the end of the connection."""

    def behave(connection: socket.socket, stop: threading.Event) -> None:
        connection.sendall(data)

    return behave


def drips(first: bytes, drop: bytes, pause_s: float = 0.01) -> Behaviour:
    """The first bytes, then one drop after the other for ever."""

    def behave(connection: socket.socket, stop: threading.Event) -> None:
        connection.sendall(first)
        while not stop.wait(pause_s):
            connection.sendall(drop)

    return behave


def floods(first: bytes, wave: bytes, most_s: float = 20.0) -> Behaviour:
    """The first bytes, then the others as fast as they are taken."""

    def behave(connection: socket.socket, stop: threading.Event) -> None:
        ends_at = time.monotonic() + most_s
        connection.sendall(first)
        while not stop.is_set() and time.monotonic() < ends_at:
            connection.sendall(wave)

    return behave


def waits(connection: socket.socket, stop: threading.Event) -> None:
    """Reads nothing and says nothing."""
    stop.wait(20)


def chunked(status: int, headers: str = "") -> Behaviour:
    """A body without an end."""
    return floods(f"HTTP/1.1 {status} X\r\ntransfer-encoding: chunked\r\n{headers}\r\n".encode(), _CHUNK)


def png(width: int, height: int, *, is_whole: bool = True) -> bytes:
    """A PNG that declares this size; its pixels are black, and few of them where it would be large."""
    rows = bytes((1 + 3 * width) * min(height, 64))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return data if is_whole else data[: len(data) // 2]


def tensor(shape: str, dtype: str = "uint8", size: int = 64 * 64 * 3) -> Behaviour:
    """A tensor whose headers are what is given."""
    head = {"content-type": "tensor/binary", "shape": shape, "dtype": dtype}
    return says(200, head, bytes(size))


def in_json(document: object, status: int = 200) -> Behaviour:
    """A document."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return says(status, {"content-type": "application/json"}, body)


def parts(count: int | None, body: bytes) -> Iterator[bytes]:
    """A preview again and again."""
    head = "--hybridge-part\r\nhybridge-part: preview\r\nhybridge-status: 200\r\ncontent-type: image/png\r\n"
    yield from [f"{head}content-length: {len(body)}\r\n\r\n".encode() + body + b"\r\n"] * (count or 1)
