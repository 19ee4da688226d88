"""Picture files with much besides pixels: people's are read, and those that mean harm cost next to nothing."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from hybridge.errors import RequestError, TooLarge
from hybridge.protocol.media import read_picture
from hybridge.protocol.picture_files import BarePicture, strip_picture

PLENTY = 10**6
RAMP = np.arange(24 * 16 * 3, dtype=np.uint16).reshape(16, 24, 3).astype(np.uint8)
PICTURE = Image.fromarray(RAMP)
EXIF_TURNED = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
XMP_TURNED = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def saved(file_format: str, image: Image.Image = PICTURE, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def strip(data: bytes) -> BarePicture:
    return strip_picture(data, max_pixels=PLENTY)


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    return read_picture(data, max_pixels=PLENTY).to_numpy()[0]


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(*chunks: bytes) -> bytes:
    """A PNG with chunks behind its header."""
    data = saved("PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segments(*segments: bytes, **options: Any) -> bytes:
    """A JPEG with segments at its beginning."""
    data = saved("JPEG", **options)
    return data[:2] + b"".join(segments) + data[2:]


def riff(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def with_riff_chunks(*chunks: bytes) -> bytes:
    """A WebP with chunks at its end."""
    data = saved("WEBP", lossless=True, exif=EXIF_TURNED) + b"".join(chunks)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


# ------------------------------------------------------------------------------------ as people have them

NOISE = np.random.default_rng(1).integers(0, 256, 2**20, dtype=np.uint8).tobytes()


def png_with_text(*, is_compressed: bool) -> bytes:
    about = PngImagePlugin.PngInfo()
    about.add_text("workflow", '{"nodes": []}' * 200_000, zip=is_compressed)
    about.add_itxt("prompt", "a cat" * 400_000, zip=is_compressed)
    return saved("PNG", pnginfo=about)


@pytest.mark.parametrize(
    "make",
    [
        lambda: png_with_text(is_compressed=False),
        lambda: png_with_text(is_compressed=True),
        lambda: saved("PNG", icc_profile=bytes(4 * 2**20)),
        lambda: saved("PNG", icc_profile=NOISE),
        lambda: with_chunks(*(chunk(b"tEXt", b"k\0" + NOISE[:60_000]) for _ in range(20))),
        lambda: saved("WEBP", lossless=True, icc_profile=NOISE, xmp=NOISE, exif=b"Exif\0\0" + NOISE),
    ],
    ids=["text", "compressed text", "profile of zeros", "profile", "many texts", "WebP"],
)
def test_megabytes_beside_the_pixels_are_skipped(make: Callable[[], bytes]) -> None:
    data = make()
    assert (pixels(data) == RAMP).all()
    assert len(strip(data).data) < 4096


def test_a_jpeg_keeps_its_pixels_and_loses_the_rest() -> None:
    plain = saved("JPEG", quality=90)
    data = with_segments(
        *(segment(0xE2, b"ICC_PROFILE\0\x01\x01" + NOISE[:65_000]) for _ in range(200)),
        segment(0xED, b"Photoshop 3.0\0" + NOISE[:60_000]),
        segment(0xFE, b"a comment"),
        quality=90,
    )
    assert (pixels(data + NOISE) == pixels(plain)).all()
    assert strip(data + NOISE).data == plain


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
def test_a_jpeg_of_any_kind_reads_as_pillow_reads_it(mode: str, options: dict[str, Any]) -> None:
    data = saved("JPEG", PICTURE.convert(mode), **options)
    with Image.open(io.BytesIO(data)) as image:
        assert (pixels(data) == np.asarray(image.convert("RGB"))).all()


def test_adobes_rgb_jpeg_keeps_its_colours() -> None:
    """APP14 says that the components are RGB; without it they would be taken for YCbCr."""
    data = saved("JPEG", quality=100, subsampling=0, keep_rgb=True)
    assert np.abs(pixels(data).astype(int) - RAMP).max() < 4


def raw_profile(exif: bytes) -> bytes:
    return b"\nexif\n%8d\n" % len(exif) + exif.hex().encode() + b"\n"


@pytest.mark.parametrize(
    "data",
    [
        with_chunks(chunk(b"eXIf", EXIF_TURNED)),
        with_chunks(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_TURNED)),
        with_chunks(chunk(b"tEXt", b"Raw profile type exif\0" + raw_profile(b"Exif\0\0" + EXIF_TURNED))),
        with_chunks(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw_profile(EXIF_TURNED)))),
        with_segments(segment(0xE1, b"Exif\0\0" + EXIF_TURNED)),
        with_segments(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP_TURNED)),
        with_riff_chunks(),
    ],
    ids=["eXIf", "XMP", "raw profile", "compressed raw profile", "JPEG", "JPEG XMP", "WebP"],
)
def test_the_orientation_is_found_wherever_programs_write_it(data: bytes) -> None:
    assert strip(data).orientation == 6
    assert pixels(data).shape == (24, 16, 3)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II*\0",
        b"MM\0*\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff",
        EXIF_TURNED[:-3].replace(b"\x06", b"\x63"),
        b"MM\0*\0\0\0\x08" + b"\xff\xff" + b"\x01\x12\0\x07\0\0\0\x01\xff\0\0\0" * 9,
    ],
)
def test_a_broken_orientation_is_none(exif: bytes) -> None:
    for data in (with_chunks(chunk(b"eXIf", exif)), with_segments(segment(0xE1, b"Exif\0\0" + exif))):
        assert strip(data).orientation == 1
        assert pixels(data).shape == (16, 24, 3)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_notes_say_what_the_sender_may_not_expect(file_format: str) -> None:
    notes: list[tuple[str, str]] = []

    def note(code: str, text: str) -> None:
        notes.append((code, text))

    read_picture(saved(file_format), max_pixels=PLENTY, note=note)
    assert notes == []
    frames = [Image.new("RGB", (25, 17), colour) for colour in ("red", "green", "blue")]
    data = saved(file_format, frames[0], save_all=True, append_images=frames[1:], lossless=True)
    read_picture(data, max_pixels=PLENTY, note=note)
    assert notes == [
        ("first-frame-only", "of the animation the first frame was read"),
        (
            "picture-resized",
            "the picture of 25x17 pixels was resized to 24x16, because sides must be multiples of 8",
        ),
    ]
    with Image.open(io.BytesIO(strip(data).data)) as image:
        assert getattr(image, "n_frames", 1) == 1


def test_hidden_colours_of_transparent_parts_are_a_note() -> None:
    def codes(picture: Image.Image, **options: Any) -> list[str]:
        found: list[str] = []
        read_picture(saved("PNG", picture, **options), max_pixels=PLENTY, note=lambda code, _: found.append(code))
        return found

    for mode in ("RGBA", "LA"):
        picture = Image.new(mode, (16, 16), "red")
        assert codes(picture) == []
        picture.putalpha(254)
        assert codes(picture) == ["alpha-dropped"]
    assert codes(Image.new("P", (16, 16)), transparency=0) == ["alpha-dropped"]
    assert codes(Image.new("P", (16, 16)), transparency=1) == []
    assert codes(Image.new("RGB", (16, 16), "red"), transparency=(255, 0, 0)) == ["alpha-dropped"]


# ---------------------------------------------------------------------------------------------- hostile


def scans(count: int) -> bytes:
    """A progressive JPEG with so many scans more, each of which passes over all pixels."""
    data = saved("JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + data[-2:]


HUGE_IFD = b"MM\0*\0\0\0\x08\xff\xff" + b"".join(
    struct.pack(">HHII", tag, 7, 2**20, 8) for tag in range(0x8000, 0x8000 + 4000)
)

TOO_LARGE = {
    "scans of a JPEG": lambda: scans(60),
    "300,000 scans": lambda: scans(300_000),
    "segments of a JPEG": lambda: with_segments(segment(0xEF, b"") * 5000),
    "tables of a JPEG": lambda: with_segments(segment(0xDB, b"\0" + bytes(64)) * 4000),
    "chunks of a PNG": lambda: with_chunks(chunk(b"tEXt") * 70_000),
    "empty IDAT": lambda: with_chunks(chunk(b"IDAT") * 70_000),
    "chunks of a WebP": lambda: with_riff_chunks(riff(b"ANMF", b"") * 70_000),
    "a file for its pixels": lambda: saved("PNG") + bytes(33 * 2**20),
    "a WebP's canvas": lambda: b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2,
}


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_what_would_cost_much_is_refused_before_it_is_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_open(*_: object, **__: object) -> None:
        raise AssertionError("a decoder was asked")

    data = TOO_LARGE[kind]()
    monkeypatch.setattr(Image, "open", must_not_open)
    with pytest.raises(TooLarge):
        read_picture(data, max_pixels=PLENTY)


def test_as_many_scans_as_programs_write_are_read() -> None:
    assert pixels(scans(50)).shape == (16, 24, 3)


@pytest.mark.parametrize(
    "data",
    [
        saved("WEBP", lossless=True, exif=HUGE_IFD + bytes(2**20)),
        with_chunks(chunk(b"eXIf", HUGE_IFD + bytes(2**20))),
        with_chunks(*[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20)))] * 60),
        with_segments(*[segment(0xE1, b"Exif\0\0" + HUGE_IFD[:60_000])] * 60),
    ],
    ids=["WebP's EXIF", "PNG's EXIF", "PNG's text", "JPEG's EXIF"],
)
def test_metadata_takes_no_memory(data: bytes) -> None:
    """Each of 4,000 entries of EXIF points to the same megabyte."""
    read_picture(saved("PNG"), max_pixels=PLENTY)  # Pillow has settled in
    tracemalloc.start()
    try:
        assert pixels(data).size == RAMP.size
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data) + 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("sof", [0xC3, 0xC9, 0xCA, 0xCB])
def test_a_jpeg_in_arithmetic_code_is_refused(sof: int) -> None:
    data = saved("JPEG").replace(b"\xff\xc0", bytes([0xFF, sof]))
    with pytest.raises(RequestError, match="neither baseline nor progressive"):
        read_picture(data, max_pixels=PLENTY)


def test_a_file_with_two_sizes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_load(self: object) -> None:
        raise AssertionError("pixels were asked for")

    monkeypatch.setattr(ImageFile.ImageFile, "load", must_not_load)
    jpeg = saved("JPEG")
    frame = jpeg[jpeg.index(b"\xff\xc0") :][:19]
    larger = frame[:5] + b"\x20\x00\x20\x00" + frame[9:]
    with pytest.raises(RequestError, match="two pictures in one JPEG"):
        read_picture(with_segments(larger), max_pixels=PLENTY)


def test_of_two_png_headers_the_first_is_meant() -> None:
    larger = chunk(b"IHDR", struct.pack(">IIBBBBB", 5000, 5000, 8, 2, 0, 0, 0))
    assert pixels(with_chunks(larger)).shape == (16, 24, 3)
