"""One file of the spool: a line of JSON, then a body of the length and the checksum that the line tells.

The folder is the user's and may hold anything by the time it is read.  So no link is followed, no named pipe is
waited for, and every file is checked before anything in it is believed.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

#: Longer than any line that the server writes: a head has 32 KiB unless told otherwise, six times as many in JSON.
_MAX_LINE_BYTES = 2**20

_CHUNK_BYTES = 2**20

#: Errors of :func:`os.open` that are about this one file, not about the disk or the process.
_OF_THE_FILE = frozenset({errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM, errno.EIO, errno.ENODEV})


class Damaged(Exception):
    """What lies there is not a whole file of the spool; says why."""


def write(path: Path, about: Mapping[str, Any], body: bytes) -> None:
    """Makes a file and syncs it; readable by its owner alone, whatever the process's umask is.

    Raises:
        OSError: when it cannot be written; what was written of it is left.
    """
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        line = {**about, "body_bytes": len(body), "body_crc32": zlib.crc32(body)}
        file.write(json.dumps(line).encode() + b"\n")
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def open_file(path: Path) -> tuple[dict[str, Any], int, BinaryIO]:
    """Its line, its body's length, and the file, which stands at the beginning of the body.

    The length is checked, the checksum is not.

    Raises:
        Damaged: when it is not a whole file of the spool.
        OSError: when it cannot be opened for another reason, such as that it is not there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise
        raise Damaged("a symbolic link" if error.errno == errno.ELOOP else error.strerror) from None
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        raise Damaged("not a regular file")
    file = os.fdopen(descriptor, "rb")
    try:
        line = file.readline(_MAX_LINE_BYTES)
        head = _head(line)
        body_bytes = about.st_size - len(line)
        expected = head.get("body_bytes", body_bytes)  # files of the first versions do not tell it
        if body_bytes != expected:
            raise Damaged(f"{body_bytes} bytes in its body instead of {expected}")
    except BaseException:
        file.close()
        raise
    return head, body_bytes, file


def read_head(path: Path) -> tuple[dict[str, Any], os.stat_result]:
    """Its line, and what the file system says of it; raises what :func:`open_file` does."""
    head, _, file = open_file(path)
    with file:
        return head, os.fstat(file.fileno())


def check_body(head: Mapping[str, Any], file: BinaryIO) -> None:
    """Compares the body with its checksum, and returns to its beginning.

    Raises:
        Damaged: when they differ.
    """
    expected = head.get("body_crc32")
    if expected is None:
        return
    begin, found = file.tell(), 0
    while chunk := file.read(_CHUNK_BYTES):
        found = zlib.crc32(chunk, found)
    if found != expected:
        raise Damaged("its body is not what was written")
    file.seek(begin)


def read_body(path: Path) -> bytes:
    """Its body; raises what :func:`open_file` and :func:`check_body` do."""
    head, _, file = open_file(path)
    with file:
        check_body(head, file)
        return file.read()


def _head(line: bytes) -> dict[str, Any]:
    if not line:
        raise Damaged("empty")
    if not line.endswith(b"\n"):
        raise Damaged("no whole line at its beginning")
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):
        raise Damaged("its first line is not JSON") from None
    if not isinstance(head, dict):
        raise Damaged("its first line is not a JSON object")
    return head
