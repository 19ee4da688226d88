"""Remove everything except the pixels from a PNG, JPEG or WebP file before a decoder reads it.

Pillow parses all metadata when it opens a file, refuses some files for the size of their text or colour profile,
and decodes all scans of a JPEG, however many; small files can take minutes, and their thread cannot be stopped.  So
the file is parsed here first.  Size, orientation and structure are read within bounds, and the decoder gets a file
with only the parts that the pixels need.

docs/server.md has the cost of the worst file within these bounds.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..errors import RequestError, TooLarge
from .webp_chunks import MAX_CHUNKS, webp_chunk_size, webp_chunks

#: First bytes of the supported picture files.  WebP's are "RIFF", four bytes of length, "WEBP".
_MAGIC = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}

#: Most bytes of a file for each allowed pixel, and in addition: incompressible 16-bit RGBA takes 8 per pixel, and
#: cameras append a film of some seconds.
_BYTES_PER_PIXEL = 16
_BYTES_BESIDE = 16 * 2**20

#: Most scans of a JPEG.  Each processes all pixels; libjpeg writes 10, optimisers about 20.
_MAX_SCANS = 64

#: Most segments of a JPEG, including scans; a colour profile takes up to 255.
_MAX_SEGMENTS = 4096

#: Most bytes of a JPEG's tables; those of ten scans take 2 KiB.
_MAX_TABLE_BYTES = 256 * 1024

#: Most bytes of EXIF or XMP that are searched for the orientation, and most entries of EXIF's first directory.
_MAX_METADATA_BYTES = 64 * 1024
_MAX_EXIF_ENTRIES = 512

_EXIF_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")


@dataclass(frozen=True, slots=True)
class BarePicture:
    """A picture file without metadata.

    Attributes:
        data: The bytes of the file.
        width: Width of the stored picture in pixels.
        height: Height of the stored picture in pixels.
        orientation: EXIF's orientation, 1 to 8: how the stored picture has to be rotated; 1 means not at all.
        is_animated: Whether the sender's file had more than one frame.
    """

    data: bytes
    width: int
    height: int
    orientation: int = 1
    is_animated: bool = False


def sniff_picture(data: bytes | memoryview) -> str | None:
    """Return the media type of a PNG, JPEG or WebP file by its first bytes, else None."""
    head = bytes(data[:12])
    for media_type, magic in _MAGIC.items():
        if head.startswith(magic):
            return media_type
    return "image/webp" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


#: Other formats that clients send: their signatures, and the positions of these.
_OTHERS = (
    ("BMP", 0, (b"BM",)),
    ("TIFF", 0, (b"II*\0", b"MM\0*")),
    ("AVIF", 4, (b"ftypavif", b"ftypavis")),
    ("HEIC", 4, (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc")),
    ("JPEG XL", 0, (b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    ("JPEG 2000", 0, (b"\0\0\0\x0cjP  ",)),
    ("PSD", 0, (b"8BPS",)),
    ("EXR", 0, (b"v/1\x01",)),
    ("SVG", 0, (b"<svg", b"<?xml")),
    ("PDF", 0, (b"%PDF-",)),
    ("a NumPy file", 0, (b"\x93NUMPY",)),
    ("a ZIP archive, such as torch.save writes,", 0, (b"PK\x03\x04",)),
)


def name_format(data: bytes) -> str | None:
    """Return the name of an unsupported file's format, by its first bytes; None if unknown."""
    return next((name for name, at, magics in _OTHERS if data.startswith(magics, at)), None)


def strip_picture(data: bytes, *, max_pixels: int) -> BarePicture:
    """Return the file without metadata, and the facts from them that matter.

    Args:
        data: A PNG, JPEG or WebP file.
        max_pixels: Most pixels (width × height) that are decoded.

    Raises:
        TooLarge: above ``max_pixels``, or above a bound on the file's parts.
        RequestError: for another file, or one that is so damaged that its parts cannot be found.
    """
    most_bytes = _BYTES_PER_PIXEL * max_pixels + _BYTES_BESIDE
    if len(data) > most_bytes:
        raise TooLarge(
            "the picture file is too large",
            saw=f"{len(data)} bytes",
            expected=f"at most {most_bytes}",
            hint="a smaller picture, or the file without what is appended to it",
        )
    walks: dict[str | None, Callable[[bytes], BarePicture]] = {
        "image/png": _strip_png,
        "image/jpeg": _strip_jpeg,
        "image/webp": _strip_webp,
    }
    walk = walks.get(sniff_picture(data))
    if walk is None:
        raise unreadable(data, f"beginning with {data[:12]!r}")
    try:
        bare = walk(data)
    except (struct.error, IndexError):
        raise unreadable(data, "a header that ends too early") from None
    pixels = bare.width * bare.height
    if pixels > max_pixels:
        raise TooLarge(
            "the picture is too large",
            saw=f"{bare.width}×{bare.height} = {pixels} pixels",
            expected=f"at most {max_pixels} pixels",
            hint="a smaller picture, or a server with a higher --max-pixels",
        )
    return bare


def unreadable(data: bytes, why: str) -> RequestError:
    """Return the error for a damaged picture file."""
    return RequestError(
        "the picture file cannot be read",
        saw=f"{len(data)} bytes, {why}",
        expected="a whole PNG, JPEG or WebP file",
        hint="open and save it again; it may have been cut short",
    )


def _too_many(what: str, most: int, hint: str) -> TooLarge:
    return TooLarge(
        f"the picture file has too many {what}", saw=f"more than {most}", expected=f"at most {most}", hint=hint
    )


# ------------------------------------------------------------------------------------------------ PNG

#: Chunks that the pixels need.
_PNG_PIXELS = frozenset({b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_PNG_XMP = b"XML:com.adobe.xmp\0\0"
_PNG_RAW_EXIF = b"Raw profile type exif\0"


def _strip_png(data: bytes) -> BarePicture:
    view = memoryview(data)
    if data[8:16] != b"\0\0\0\rIHDR":
        raise unreadable(data, "a PNG without its first chunk")
    width, height = struct.unpack_from(">II", data, 16)
    kept: list[memoryview] = [view[:33]]  # the signature and IHDR with its checksum
    exif = xmp = b""
    is_animated = False
    for kind, begin, end in _png_chunks(data):
        if kind in _PNG_PIXELS:
            kept.append(view[begin:end])
        elif kind == b"acTL":
            is_animated = struct.unpack_from(">I", data, begin + 8)[0] > 1
        elif end - begin <= _MAX_METADATA_BYTES:
            content = data[begin + 8 : end - 4]
            if kind == b"eXIf":
                exif = exif or content
            elif kind == b"iTXt" and content.startswith(_PNG_XMP):
                xmp = xmp or content
            elif kind in (b"tEXt", b"zTXt") and content.startswith(_PNG_RAW_EXIF):
                exif = exif or _raw_exif(content[len(_PNG_RAW_EXIF) :], is_deflated=kind == b"zTXt")
    return BarePicture(b"".join(kept), width, height, _orientation(exif, xmp), is_animated)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, begin and end of each chunk after IHDR, up to IEND or to the end of a truncated file."""
    begin = 33
    for _ in range(MAX_CHUNKS):
        if begin + 8 > len(data):
            return
        kind = data[begin + 4 : begin + 8]
        end = begin + 12 + int.from_bytes(data[begin : begin + 4], "big")
        yield kind, begin, min(end, len(data))
        if kind == b"IEND":
            return
        begin = end
    raise _too_many("chunks", MAX_CHUNKS, "saving it again with another program")


def _raw_exif(content: bytes, *, is_deflated: bool) -> bytes:
    """Return the EXIF that ImageMagick writes as text: a name, a length, and lines of hexadecimal digits."""
    try:
        text = zlib.decompressobj().decompress(content[1:], 4 * _MAX_METADATA_BYTES) if is_deflated else content
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except (ValueError, zlib.error):
        return b""


# ----------------------------------------------------------------------------------------------- JPEG

#: A marker that ends the segment before it: neither a stuffed zero nor a restart.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
#: Bytes that are searched at a time: the search holds the interpreter's lock.
_JPEG_STRIDE = 1024 * 1024

_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
#: Baseline, extended and progressive frames, each with Huffman coding.
_JPEG_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_JPEG_TABLES = frozenset({0xC4, 0xDB, 0xDC, 0xDD})  # DHT, DQT, DNL, DRI
_JPEG_OTHER_FRAMES = frozenset(range(0xC0, 0xD0)) - _JPEG_FRAMES - {0xC4}
_EXIF = b"Exif\0\0"
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"


def _strip_jpeg(data: bytes) -> BarePicture:
    view = memoryview(data)
    kept: list[memoryview] = [view[:2]]
    size: tuple[int, int] | None = None
    exif = xmp = b""
    scans = table_bytes = 0
    for marker, begin, end in _jpeg_segments(data):
        content = data[begin + 4 : begin + 4 + 32]
        is_kept = marker in _JPEG_TABLES or marker == _EOI
        if marker in _JPEG_FRAMES:
            if size is not None:
                raise unreadable(data, "two pictures in one JPEG")
            height, width = struct.unpack_from(">HH", data, begin + 5)
            size, is_kept = (width, height), True
        elif marker in _JPEG_OTHER_FRAMES or marker == _SOI:
            raise unreadable(data, "a JPEG that is neither baseline nor progressive in Huffman's code")
        elif marker == _SOS:
            scans, is_kept = scans + 1, True
            if scans > _MAX_SCANS:
                raise _too_many("scans", _MAX_SCANS, "saving it again, as PNG or as an ordinary JPEG")
        elif marker == _APP0:
            is_kept = content.startswith(b"JFIF\0")
        elif marker == _APP14:
            is_kept = content.startswith(b"Adobe")
        elif marker == _APP1 and content.startswith(_EXIF):
            exif = exif or data[begin + 4 : end]
        elif marker == _APP1 and content.startswith(_JPEG_XMP):
            xmp = xmp or data[begin + 4 : end]
        if not is_kept:
            continue
        kept.append(view[begin:end])
        if marker != _SOS:
            table_bytes += end - begin
            if table_bytes > _MAX_TABLE_BYTES:
                raise _too_many("bytes of tables", _MAX_TABLE_BYTES, "saving it again with another program")
    if size is None or not scans:
        raise unreadable(data, "a JPEG without a picture")
    return BarePicture(b"".join(kept), *size, _orientation(exif, xmp))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, begin and end of each segment after SOI, up to EOI or to the end of a truncated file.

    A scan's segment includes its entropy-coded data.  Bytes between segments are skipped.
    """
    at = 2
    for _ in range(_MAX_SEGMENTS):
        begin = _next_marker(data, at)
        if begin is None:
            return
        marker = data[begin + 1]
        at = begin + 2
        if marker not in (_TEM, _SOI, _EOI):
            length = struct.unpack_from(">H", data, at)[0]
            if length < 2:
                raise unreadable(data, "a segment of no length")
            at += length
        if marker == _SOS:
            following = _next_marker(data, at)
            at = len(data) if following is None else following
        yield marker, begin, min(at, len(data))
        if marker == _EOI:
            return
    raise _too_many("segments", _MAX_SEGMENTS, "saving it again with another program")


def _next_marker(data: bytes, at: int) -> int | None:
    while at < len(data):
        found = _JPEG_MARKER.search(data, at, at + _JPEG_STRIDE)
        if found:
            return found.start()
        at += _JPEG_STRIDE - 1  # a marker may cross the border
    return None


# ----------------------------------------------------------------------------------------------- WebP

_WEBP_PIXELS = frozenset({b"ALPH", b"VP8 ", b"VP8L", b"ANIM"})
#: VP8X's flags for a colour profile, EXIF and XMP.
_WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04


def _strip_webp(data: bytes) -> BarePicture:
    view = memoryview(data)
    kept: list[bytes | memoryview] = []
    size: tuple[int, int] | None = None
    exif = xmp = b""
    frames = 0
    for kind, begin, end in webp_chunks(data):
        content = begin + 8
        if kind in (b"VP8X", b"VP8 ", b"VP8L") and size is None:
            size = webp_chunk_size(data, kind, content)
        if kind == b"VP8X":
            flags = data[content] & ~_WEBP_METADATA_FLAGS
            kept += [view[begin:content], bytes([flags]), view[content + 1 : end]]
        elif kind in _WEBP_PIXELS:
            kept.append(view[begin:end])
        elif kind == b"ANMF":
            frames += 1
            if frames == 1:
                kept.append(view[begin:end])
        elif kind == b"EXIF":
            exif = exif or data[content : min(end, content + _MAX_METADATA_BYTES)]
        elif kind == b"XMP ":
            xmp = xmp or data[content : min(end, content + _MAX_METADATA_BYTES)]
    if size is None:
        raise unreadable(data, "a WebP without a picture")
    body = b"".join(kept)
    header = b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP"
    return BarePicture(header + body, *size, _orientation(exif, xmp), frames > 1)


# ---------------------------------------------------------------------------------------- orientation


def _orientation(exif: bytes, xmp: bytes) -> int:
    """Return the orientation, 1 to 8, from EXIF if it is there, else from XMP; 1 if neither can be read."""
    from_exif = _exif_orientation(exif.removeprefix(_EXIF))
    if from_exif is not None:
        return from_exif
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 1


def _exif_orientation(tiff: bytes) -> int | None:
    """Return the orientation from TIFF's first directory (its specification, version 6, section 2)."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    try:
        directory = struct.unpack_from(order + "I", tiff, 4)[0]
        entries = struct.unpack_from(order + "H", tiff, directory)[0]
        for index in range(min(entries, _MAX_EXIF_ENTRIES)):
            at = directory + 2 + 12 * index
            tag, kind = struct.unpack_from(order + "HH", tiff, at)
            if tag == _EXIF_ORIENTATION:
                value = struct.unpack_from(order + {3: "H", 4: "I"}.get(kind, "B"), tiff, at + 8)[0]
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return None
