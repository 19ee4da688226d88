"""Bound an answer's size, and check its dtype and shape against the request.

Only the server knows how many pixels a latent becomes.  Here every integer factor is accepted if it is the same for
both sides.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import BadAnswer
from ..protocol import (
    Answer,
    DecodeRequest,
    EncodeRequest,
    FileAnswer,
    PictureFile,
    PromptRequest,
    Request,
    WireTensor,
    sniff_picture,
)

#: Most pixels per latent on each side, and most frames per latent of a video, as in published VAEs.
_MOST_FACTOR = 32
_MOST_FRAMES = 8

#: The most channels of a picture.
_MOST_CHANNELS = 4

#: Bytes added to every bound, for files' headers and as a margin.
_SLACK_BYTES = 1 << 20

#: Most bytes per pixel of an answer: float32 in base64, or 8 bits for each channel.
_FLOAT_PIXEL_BYTES = 16
_BYTE_PIXEL_BYTES = 4

#: Most bytes of an answer if the size of the sent picture is unknown.
_MOST_BYTES = 1 << 30

#: Most bytes of a document with which a server describes itself.
MOST_DOCUMENT_BYTES = 1 << 24

#: Most bytes of one text's embeddings, with padding: 1024 tokens × 49 layers × 3840 numbers in float32 are 771 MB.
_MOST_TEXT_BYTES = 1 << 30


def most_embeddings_bytes(request: PromptRequest) -> int:
    """Return the size of the largest possible answer's body, and of its tensors with padding."""
    twins = 2 if any(name.startswith("negative") for name in request.inputs) else 1
    return request.batch * twins * _MOST_TEXT_BYTES


def most_bytes(request: Request) -> int:
    """Return the size of the largest possible answer's body."""
    if isinstance(request, EncodeRequest):
        size = _image_size(request.image)
        # A VAE's latents, including moments, are fewer numbers than the picture.
        return _MOST_BYTES if size is None else math.prod(size) * _FLOAT_PIXEL_BYTES + _SLACK_BYTES
    each = _FLOAT_PIXEL_BYTES if request.output in ("unit", "signed") else _BYTE_PIXEL_BYTES
    pixels = max(grid.count * grid.height * grid.width * grid.most_factor**2 for grid in _grids(request))
    return pixels * each + _SLACK_BYTES


def check(request: Request, answer: Answer) -> None:
    """Check an answer's kind, dtype, shape or size before it is decoded.

    Raises:
        BadAnswer: when it does not fit the request.
    """
    wants_file = isinstance(request, DecodeRequest) and request.output in ("picture", "video")
    if isinstance(answer, FileAnswer):
        if not wants_file:
            raise BadAnswer("the server sent a file", saw=answer.media_type, expected="a tensor")
        if isinstance(request, DecodeRequest):
            _check_file(request, answer)
    elif wants_file:
        raise BadAnswer("the server sent a tensor", saw=list(answer.tensor.shape), expected="a file")
    elif isinstance(request, DecodeRequest):
        _check_pixels(request, answer.tensor)
    else:
        _check_latents(request, answer.tensor)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Latents as (count, height, width), each of which becomes ``f`` × ``f`` pixels for one integer ``f``.

    With ``most_factor`` 1 the sides are the picture's own, and ``slack`` is how much smaller the picture may be.
    """

    count: int
    height: int
    width: int
    most_factor: int = _MOST_FACTOR
    slack: int = 0

    def has(self, height: int, width: int) -> bool:
        """Return whether a picture of this size is possible."""
        if self.most_factor == 1:
            return 0 <= self.height - height <= self.slack and 0 <= self.width - width <= self.slack
        factor = height // self.height
        is_whole = (height, width) == (factor * self.height, factor * self.width)
        return is_whole and 1 <= factor <= self.most_factor


def _grids(request: DecodeRequest) -> list[_Grid]:
    """Return the possible grids of the latents; three axes are packed latents or one item without batch axis."""
    shape = request.latents.shape
    if len(shape) == 5:
        frames = shape[0] * shape[2] * _MOST_FRAMES
        return [_Grid(frames, shape[3], shape[4])]
    if len(shape) == 3 and request.height and request.width:
        # Sides that are not multiples of a token's pixels are rounded down.
        packed = _Grid(shape[0], request.height, request.width, most_factor=1, slack=2 * _MOST_FACTOR - 1)
        return [packed, _Grid(1, shape[1], shape[2])]
    if len(shape) in (3, 4):
        return [_Grid(shape[0] if len(shape) == 4 else 1, shape[-2], shape[-1])]
    return [_Grid(1, math.prod(shape), 1)]  # every server refuses it


def _check_pixels(request: DecodeRequest, tensor: WireTensor) -> None:
    is_bytes = request.output == "pixels"
    shape = tensor.shape
    is_video = len(request.latents.shape) == 5
    item: tuple[int, ...]
    if is_bytes:
        layout = "[N, H, W, 3]"
        item = shape[1:3] if len(shape) == 4 and shape[3] == 3 else ()
        count = shape[0]
    else:
        layout = "[N, 3, H, W]"
        item = shape[-2:] if len(shape) >= 4 and shape[-3 if len(shape) == 4 else 1] <= _MOST_CHANNELS else ()
        count = shape[0] * shape[2] if len(shape) == 5 else shape[0]
        if len(shape) == 5 and not is_video:
            item = ()
    grids = _grids(request)
    fits = len(item) == 2 and any(
        grid.has(*item) and (count <= grid.count if is_video else count == grid.count) for grid in grids
    )
    if not fits or (tensor.dtype == "uint8") != is_bytes:
        raise BadAnswer(
            "the server answered with another tensor",
            saw=f"{tensor.dtype} {list(shape)}",
            expected=f"{'uint8' if is_bytes else 'floats'} {layout} of latents {list(request.latents.shape)}",
        )


def _check_latents(request: EncodeRequest, tensor: WireTensor) -> None:
    image, shape = request.image, tensor.shape
    size = _image_size(image)
    fits = len(shape) == 4 and tensor.dtype != "uint8"
    if fits and size is not None:
        count, height, width = size
        sides = {(height, width)} if isinstance(image, WireTensor) else {(height, width), (width, height)}  # EXIF
        fits = shape[0] == count and any(
            (side[0] // factor, side[1] // factor) == shape[2:]
            for side in sides
            for factor in range(1, _MOST_FACTOR + 1)
        )
    if not fits:
        sent = f"pixels {list(image.shape)}" if isinstance(image, WireTensor) else "one picture"
        if size is not None and not isinstance(image, WireTensor):
            sent += f" of {size[2]}×{size[1]}"
        raise BadAnswer(
            "the server answered with another tensor",
            saw=f"{tensor.dtype} {list(shape)}",
            expected=f"floats [N, C, H/f, W/f] of {sent}",
        )


def _check_file(request: DecodeRequest, answer: FileAnswer) -> None:
    data = answer.data
    if request.output == "video":
        if not _is_whole_mp4(data):
            raise _cut_short("video", data)
        return
    if not _ends_well(data):
        raise _cut_short("picture", data)
    size = picture_size(data)
    if size is not None and not any(grid.has(*size) for grid in _grids(request)):
        raise BadAnswer(
            "the server sent a picture of another size",
            saw=f"{size[1]}×{size[0]}",
            expected=f"that of latents {list(request.latents.shape)}"
            + (f" with height={request.height}, width={request.width}" if request.height else ""),
        )


def _cut_short(what: str, data: bytes) -> BadAnswer:
    return BadAnswer(
        f"the server sent a {what} that cannot be read",
        saw=f"{len(data)} bytes, beginning with {data[:12]!r}",
        expected="a whole file",
        hint="once more; it may have been cut short on the way",
    )


def _image_size(image: PictureFile | WireTensor) -> tuple[int, int, int] | None:
    """Return (count, height, width) of the input of an encode; None if unknown."""
    if isinstance(image, PictureFile):
        size = picture_size(image.data)
        return None if size is None else (1, *size)
    if len(image.shape) not in (3, 4):
        return None
    count, item = (image.shape[0], image.shape[1:]) if len(image.shape) == 4 else (1, image.shape)
    height, width = item[:2] if image.dtype == "uint8" and item[2] == 3 else item[1:]
    return count, height, width


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
    """Return whether a PNG, JPEG or WebP file has its end; True for other files, which Pillow checks."""
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
