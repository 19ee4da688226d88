"""The chunks of a WebP file: where they are, and the size and the number of frames that they tell."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ..errors import TooLarge

#: Most chunks of a PNG or a WebP.  libpng writes 8 KiB into each.
MAX_CHUNKS = 65_536

#: The flag of VP8X.
_ANIMATION = 0x02


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, begin and end of each chunk, including its padding byte.

    Raises:
        TooLarge: for more chunks than any program writes.
    """
    begin = 12
    for _ in range(MAX_CHUNKS):
        if begin + 8 > len(data):
            return
        nbytes = int.from_bytes(data[begin + 4 : begin + 8], "little")
        end = begin + 8 + nbytes + nbytes % 2
        yield data[begin : begin + 4], begin, min(end, len(data))
        begin = end
    raise TooLarge(
        "the picture file has too many chunks",
        saw=f"more than {MAX_CHUNKS}",
        expected=f"at most {MAX_CHUNKS}",
        hint="saving it again with another program",
    )


def is_animated_webp(data: bytes) -> bool:
    """Return whether the header of a file says that it is a WebP with an animation."""
    return data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and bool(data[20:21] and data[20] & _ANIMATION)


def webp_chunk_size(data: bytes, kind: bytes, content: int) -> tuple[int, int]:
    """Return the width and the height that a chunk of kind VP8X, VP8 or VP8L tells; its content begins there."""
    if kind == b"VP8X":
        _, width, width_high, height, height_high = struct.unpack_from("<IHBHB", data, content)
        return 1 + width + (width_high << 16), 1 + height + (height_high << 16)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, content + 6)
        return width & 0x3FFF, height & 0x3FFF
    bits = struct.unpack_from("<I", data, content + 1)[0]
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


def webp_facts(data: bytes) -> tuple[int, int, int]:
    """Return width, height and number of frames of a WebP; zeros where the file does not say.

    Raises:
        struct.error: for a file that ends in its header.
    """
    width = height = frames = 0
    for kind, begin, _ in webp_chunks(data):
        if kind in (b"VP8X", b"VP8 ", b"VP8L") and not width:
            width, height = webp_chunk_size(data, kind, begin + 8)
        frames += kind in (b"ANMF", b"VP8 ", b"VP8L")
    return width, height, frames
