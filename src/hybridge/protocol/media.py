"""Read untrusted picture files, and write pictures as files; :mod:`.video_writer` and
:mod:`.video_reader` do so for videos.

This needs Pillow and NumPy; each is imported where it is used, because a client that only sends tensors need not
have them.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import RequestError, TooLarge
from .messages import DEFAULT_QUALITY, FileAnswer, PictureFormat
from .picture_files import BarePicture, strip_picture, unreadable
from .tensor import WireTensor

if TYPE_CHECKING:
    from PIL.Image import Image

#: Longest side of each file format in pixels: the JPEG library's and WebP's own limits.  PNG's limit is larger than
#: any picture.
LONGEST_SIDE = {"jpeg": 65_500, "webp": 16_383}


def read_picture(
    data: bytes,
    *,
    max_pixels: int,
    multiple: int = 8,
    note: Callable[[str, str], object] = lambda _code, _text: None,
) -> WireTensor:
    """Read the pixels of a PNG, JPEG or WebP file of any mode, as uint8 (1, H, W, 3).

    As in diffusers' ``load_image`` and ``VaeImageProcessor``, the picture is rotated by its EXIF orientation,
    converted to RGB (alpha is dropped, not blended), and resized with Lanczos if a side is not a multiple of
    ``multiple``, to the next lower one.  16-bit grey is scaled to 8 bits, not clipped.  For an animation, the first
    frame is read.  Colour profiles are ignored.

    Args:
        data: The file.
        max_pixels: Most pixels (width × height) that are decoded; the header is checked before memory is taken.
        multiple: The VAE's spatial factor.
        note: Called with a code of :mod:`hybridge.models.doctor.causes` and a sentence for each surprise to the
            sender: a picture that was resized, an animation of which one frame was read, transparent parts.

    Raises:
        TooLarge: above ``max_pixels``, or for a file with far more parts than any program writes.
        RequestError: for a damaged file, or a side smaller than ``multiple``.
    """
    from PIL import Image, UnidentifiedImageError

    bare = strip_picture(data, max_pixels=max_pixels)
    try:
        file = Image.open(io.BytesIO(bare.data), formats=("PNG", "JPEG", "WEBP"))
        _check_size(file, bare)
        file.load()
        picture = _with_alpha(_upright(file, bare.orientation))
        is_transparent = "A" in picture.getbands() and picture.getchannel("A").getextrema()[0] < 255  # type: ignore[operator]
        picture = _to_rgb(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLarge(
            "the picture is too large", saw="a decompression bomb", expected=f"at most {max_pixels} pixels"
        ) from None
    except Exception as error:  # Pillow raises a dozen types for damaged files, for example struct.error
        said = type(error).__name__
        # Pillow names the object that it reads from, with its address in memory.
        raise unreadable(data, said if isinstance(error, UnidentifiedImageError) else f"{said}: {error}") from None
    if bare.is_animated:
        note("first-frame-only", "of the animation the first frame was read")
    if is_transparent:
        note(
            "alpha-dropped",
            "the picture has transparent parts, which got the colours that they hide, because alpha is dropped",
        )
    width, height = (side - side % multiple for side in picture.size)
    if not width or not height:
        raise RequestError(
            "the picture is too small",
            saw=f"{picture.width}×{picture.height}",
            expected=f"at least {multiple}×{multiple}",
        )
    if (width, height) != picture.size:
        note(
            "picture-resized",
            f"the picture of {picture.width}x{picture.height} pixels was resized to {width}x{height},"
            f" because sides must be multiples of {multiple}",
        )
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return WireTensor("uint8", (1, height, width, 3), picture.tobytes())


def _check_size(file: Image, bare: BarePicture) -> None:
    """Check that the decoder's size equals the size that was checked before."""
    if file.size != (bare.width, bare.height):
        raise ValueError(f"two sizes, {bare.width}×{bare.height} and {file.width}×{file.height}")


def _upright(picture: Image, orientation: int) -> Image:
    """Return the picture rotated by its EXIF orientation."""
    from PIL.Image import Transpose

    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _with_alpha(picture: Image) -> Image:
    """Return a picture with alpha in a channel, if it has it as a transparent colour or in its palette."""
    is_coloured = "transparency" in picture.info and not picture.mode.startswith("I")
    return picture.convert("RGBA") if is_coloured else picture


def _to_rgb(picture: Image) -> Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I"):
        import numpy as np
        from PIL import Image

        # Pillow would clip 16-bit grey at 255 instead of scaling it.
        grey = np.asarray(picture).astype(np.float32) / 257.0
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")


def write_picture(
    pixels: WireTensor, picture_format: PictureFormat, *, quality: int = DEFAULT_QUALITY
) -> FileAnswer:
    """Write one picture as a file.

    Args:
        pixels: uint8 (1, H, W, 3).
        picture_format: JPEG without chroma subsampling, PNG at a light compression, or lossless WebP.
        quality: Quality of a JPEG, 1 to 100.
    """
    from PIL import Image

    _, height, width, _ = pixels.shape
    if picture_format == "png":
        return FileAnswer(_png(pixels.data, height, width), "image/png")
    picture = Image.frombuffer("RGB", (width, height), bytes(pixels.data), "raw", "RGB", 0, 1)
    file = io.BytesIO()
    if picture_format == "jpeg":
        picture.save(file, "JPEG", quality=quality, subsampling=0)
    else:
        picture.save(file, "WEBP", lossless=True, quality=0, method=1)
    return FileAnswer(file.getvalue(), f"image/{picture_format}")


def _png(rgb: bytes | bytearray | memoryview, height: int, width: int) -> bytes:
    """Write 8-bit RGB as PNG (the specification's sections 9.2, 10 and 11.2), in a sixth of Pillow's time.

    Pillow tries all five filters for every row.  Here every row is stored as the difference to the row above, which
    takes about as many bytes, for pictures and for drawings.
    """
    import numpy

    picture = numpy.frombuffer(rgb, numpy.uint8).reshape(height, 3 * width)
    rows = numpy.empty((height, 1 + 3 * width), numpy.uint8)
    rows[:, 0] = 2  # the filter: Up
    rows[0, 1:] = picture[0]
    numpy.subtract(picture[1:], picture[:-1], out=rows[1:, 1:])
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),  # 8 bits, RGB, not interlaced
        (b"IDAT", _deflated(rows.data)),
        (b"IEND", b""),
    )
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _deflated(rows: memoryview) -> bytes:
    try:
        from isal import isal_zlib
    except ImportError:  # not available for every processor
        # In such differences, searching for more than repeated bytes costs time and finds nothing.
        deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
        return deflate.compress(rows) + deflate.flush()
    return isal_zlib.compress(rows, 1)
