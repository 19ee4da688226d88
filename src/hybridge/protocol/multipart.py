"""Read and write ``multipart/form-data`` bodies (RFC 7578), as ``curl -F`` and ``requests.post(files=…)`` send.

The number of parts and the head of each are bounded; the contents share the body's memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import RequestError, TooLarge

#: Most parts of one body.
MOST_PARTS = 16

#: Most bytes of the header lines of a part.
_MOST_HEAD_BYTES = 4096

#: RFC 2046 allows 70 characters; quoted boundaries may contain characters that a token may not.
_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb';\s*name="?([^";\r\n]{1,100})"?', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FormPart:
    """One field of a form: its name and its bytes."""

    name: str
    data: bytes


def read_form(body: bytes, content_type: str) -> list[FormPart]:
    """Return the fields of a form in the order in which they were sent.

    Raises:
        RequestError: for a body that is not such a form, or is truncated.
        TooLarge: for more parts, or longer heads, than any form here needs.
    """
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise RequestError("the form names no boundary", saw=content_type[:80], expected="…; boundary=…")
    delimiter = b"--" + (found[1] or found[2]).encode("latin-1", "replace")
    at = body.find(delimiter)
    if at != 0 and body[max(0, at - 2) : at] != b"\r\n":
        raise _cut_short("no boundary")
    parts: list[FormPart] = []
    at += len(delimiter)
    while body[at : at + 2] != b"--":
        if len(parts) == MOST_PARTS:
            raise TooLarge("the form has too many parts", saw=f"more than {MOST_PARTS}", expected="fewer")
        head_end = body.find(b"\r\n\r\n", at, at + _MOST_HEAD_BYTES)
        end = body.find(b"\r\n" + delimiter, head_end + 2)
        if body[at : at + 2] != b"\r\n" or head_end < 0 or end < 0:
            raise _cut_short(f"{len(parts)} whole parts")
        parts.append(FormPart(_name(body[at:head_end]), body[head_end + 4 : end]))
        at = end + 2 + len(delimiter)
    return parts


def write_form(fields: list[tuple[str, str, bytes]], boundary: str) -> bytes:
    """Write fields (name, media type, content) as a form; ``boundary`` must not occur in any content."""
    lines: list[bytes] = []
    for name, media_type, data in fields:
        file = "" if media_type == "application/json" else f'; filename="{name}"'
        head = f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"{file}\r\ncontent-type: {media_type}'
        lines += [head.encode(), b"\r\n\r\n", data, b"\r\n"]
    return b"".join([*lines, f"--{boundary}--\r\n".encode()])


def _name(head: bytes) -> str:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-disposition:"):
            found = _NAME.search(line)
            if found:
                return found[1].decode("utf-8", "replace")
    raise RequestError("a part of the form has no name", expected='content-disposition: form-data; name="…"')


def _cut_short(saw: str) -> RequestError:
    return RequestError(
        "the form cannot be read", saw=saw, expected="parts of multipart/form-data, with the last boundary's `--`"
    )
