"""What can be told of a file without its library: a picture's size, and whether a file has its end."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ..protocol import sniff_picture, sniff_video


def is_whole(data: bytes) -> bool:
    """Return whether a picture or video file has its end; False for files of other kinds."""
    kind = sniff_video(data)
    if kind == "video/mp4":
        return _is_whole_mp4(data)
    if kind == "image/gif":
        return data[-1:] == b";"
    if kind == "video/webm":
        return True  # its end is where its last cluster's is, which its frames tell
    return _ends_well(data)


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) as declared by a PNG, JPEG or WebP file; None if it declares none.

    This does not use Pillow, which may be missing, and which warns of large pictures before they can be refused.
    """
    kind = sniff_picture(data)
    try:
        if kind == "image/png":
            width, height = struct.unpack_from(">II", data, 16)
            return height, width
        if kind == "image/jpeg":
            return _jpeg_size(data)
        return _webp_size(data) if kind == "image/webp" else None
    except struct.error:
        return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Read the size from the first frame header, ITU T.81 B.2.2."""
    position = 2
    while True:
        mark, marker, length = struct.unpack_from(">BBH", data, position)
        if mark != 0xFF:
            return None
        if marker == 0xFF:  # a fill byte
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return height, width
        else:
            position += 2 + length


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Read the size from the first chunk, RFC 9649."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return height, width
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    return None


def _ends_well(data: bytes) -> bool:
    """Return whether a PNG, JPEG or WebP file has its end."""
    kind = sniff_picture(data)
    if kind == "image/png":
        return b"IEND" in data[-64:]
    if kind == "image/jpeg":
        return b"\xff\xd9" in data[-64:]
    if kind == "image/webp":
        return len(data) >= 8 and struct.unpack("<I", data[4:8])[0] <= len(data) - 8
    return kind is not None


def _is_whole_mp4(data: bytes) -> bool:
    """Return whether a file's boxes (ISO 14496-12) end at the end of the file and include an index and frames."""
    kinds = set()
    position = 0
    for kind, length in _boxes(data):
        kinds.add(kind)
        position += length
    return position == len(data) and {b"ftyp", b"moov", b"mdat"} <= kinds


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    position = 0
    while position + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        if length == 1 and position + 16 <= len(data):
            length = struct.unpack(">Q", data[position + 8 : position + 16])[0]
        elif length == 0:
            length = len(data) - position
        if length < 8:
            return
        yield kind, length
        position += length
