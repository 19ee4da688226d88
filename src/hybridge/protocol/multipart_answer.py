"""Several answers in one response, each sent as soon as it is ready: an extension of hybridge.

The format is ``multipart/mixed`` of RFC 2046, restricted: every part has a ``Content-Length``, so that a reader
need not search for the boundary in binary data, and ``hybridge-part`` names the part.  A part that failed is an
error's JSON with its status in ``hybridge-status``, because the response's own status was sent before.
"""

from __future__ import annotations

from ..errors import BadAnswer
from .messages import HttpResponse

#: A constant, because the lengths, not the boundary, tell where a part ends.
BOUNDARY = "hybridge-part"

#: The response's Content-Type.
PARTED = f"multipart/mixed; boundary={BOUNDARY}"

#: Most bytes of the headers of one part; ours take about 300 bytes.
_MAX_HEAD_BYTES = 16_384

_START = f"--{BOUNDARY}\r\n".encode("ascii")
_END = f"--{BOUNDARY}--\r\n".encode("ascii")


def write_part(name: str, response: HttpResponse) -> bytes:
    """Write a response, with its status, as a part with a name, such as ``preview`` or ``picture``."""
    headers = {
        **response.headers,
        "hybridge-part": name,
        "hybridge-status": str(response.status),
        "content-length": str(len(response.body)),
    }
    head = "".join(f"{header}: {value}\r\n" for header, value in headers.items())
    return _START + head.encode("latin-1", "replace") + b"\r\n" + response.body + b"\r\n"


def end_parts() -> bytes:
    """Return the bytes after the last part."""
    return _END


class PartsReader:
    """Reads bytes as they arrive, and returns each part when it is complete.

    Args:
        most_bytes: Size of the largest part that is accepted; None for no bound.
    """

    def __init__(self, most_bytes: int | None = None) -> None:
        self._most_bytes = most_bytes
        self._buffer = bytearray()
        self._is_at_end = False

    def feed(self, data: bytes) -> list[HttpResponse]:
        """Return the parts that ``data`` completes; each has its name in the header ``hybridge-part``.

        Raises:
            BadAnswer: when this is not such a response.
        """
        self._buffer += data
        parts = []
        while not self._is_at_end and (part := self._next()) is not None:
            parts.append(part)
        return parts

    def finish(self) -> None:
        """Raise BadAnswer unless the last part has arrived."""
        if not self._is_at_end:
            raise BadAnswer(
                "the answer was cut short",
                saw=f"{len(self._buffer)} bytes of an unfinished part",
                expected="all parts and the closing boundary",
                hint="once more",
            )

    def _next(self) -> HttpResponse | None:
        if self._buffer.startswith(_END[:-2]):
            self._is_at_end = True
            return None
        end_of_head = self._buffer.find(b"\r\n\r\n", 0, _MAX_HEAD_BYTES)
        if end_of_head < 0:
            begins_well = self._buffer.startswith(_START[: len(self._buffer)])
            if len(self._buffer) >= _MAX_HEAD_BYTES or not (begins_well or _END.startswith(self._buffer)):
                raise self._unreadable()
            return None
        headers = self._headers(end_of_head)
        try:
            length, status = int(headers["content-length"]), int(headers["hybridge-status"])
        except (KeyError, ValueError):
            raise self._unreadable() from None
        if length < 0:
            raise self._unreadable()
        if self._most_bytes is not None and length > self._most_bytes:
            raise BadAnswer(
                "a part is larger than what was asked for can be",
                saw=f"{length} bytes",
                expected=f"at most {self._most_bytes} bytes",
            )
        begin = end_of_head + 4
        if len(self._buffer) < begin + length + 2:
            return None
        body = bytes(self._buffer[begin : begin + length])
        del self._buffer[: begin + length + 2]
        return HttpResponse(status, headers, body)

    def _headers(self, end: int) -> dict[str, str]:
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        if lines[0] != f"--{BOUNDARY}":
            raise self._unreadable()
        pairs = (line.partition(":") for line in lines[1:])
        return {name.strip().lower(): value.strip() for name, _, value in pairs}

    def _unreadable(self) -> BadAnswer:
        return BadAnswer(
            "the parts of the answer cannot be read",
            saw=f"{bytes(self._buffer[:60])!r}",
            expected=f"parts of {PARTED}",
        )
