"""Bound an answer's size, and check its dtype and shape against the request.

Only the server knows how many pixels a latent becomes.  Here every integer factor is accepted if it is the same for
both sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import BadAnswer
from ..protocol import (
    Answer,
    DecodeRequest,
    EncodeRequest,
    FileAnswer,
    PictureFile,
    PromptRequest,
    Request,
    VideoFile,
    WireTensor,
    sniff_picture,
)
from ..protocol.webp_chunks import is_animated_webp
from .file_checks import is_whole, picture_size

#: Most pixels per latent on each side, and most frames per latent of a video, as in published VAEs.
_MOST_FACTOR = 32
_MOST_FRAMES = 8

#: Most pixels of a packed video's token on each side: LTX-Video's are single latents.
_MOST_TOKEN_PIXELS = 32

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
    With ``is_film``, ``count`` is the most frames.
    """

    count: int
    height: int
    width: int
    most_factor: int = _MOST_FACTOR
    slack: int = 0
    is_film: bool = False

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
        frames = shape[0] * max(shape[1:3]) * _MOST_FRAMES
        return [_Grid(frames, shape[3], shape[4], is_film=True)]
    if len(shape) == 3 and request.height and request.width:
        size = request.height, request.width
        # Sides that are not multiples of a token's pixels are rounded down.
        packed = _Grid(shape[0], *size, most_factor=1, slack=2 * _MOST_FACTOR - 1)
        in_a_frame = math.prod(max(1, side // _MOST_TOKEN_PIXELS) for side in size)
        frames = shape[0] * max(1, shape[1] // in_a_frame) * _MOST_FRAMES
        films = [] if request.output == "picture" else [replace(packed, count=frames, is_film=True)]
        return [packed, *films, _Grid(1, shape[1], shape[2])]
    if len(shape) in (3, 4):
        pictures = _Grid(shape[0] if len(shape) == 4 else 1, shape[-2], shape[-1])
        return [pictures, replace(pictures, is_film=True)]  # to a model of videos they are films of one frame
    return [_Grid(1, math.prod(shape), 1)]  # every server refuses it


def _check_pixels(request: DecodeRequest, tensor: WireTensor) -> None:
    is_bytes = request.output == "pixels"
    shape = tensor.shape
    grids = _grids(request)
    item: tuple[int, ...]
    if is_bytes:
        layout = "[N, H, W, 3]"
        item = shape[1:3] if len(shape) == 4 and shape[3] == 3 else ()
        count = shape[0]
    else:
        layout = "[N, 3, H, W]"
        item = shape[-2:] if len(shape) >= 4 and shape[-3 if len(shape) == 4 else 1] <= _MOST_CHANNELS else ()
        count = shape[0] * shape[2] if len(shape) == 5 else shape[0]
        if len(shape) == 5:
            grids = [grid for grid in grids if grid.is_film]
    fits = len(item) == 2 and any(
        grid.has(*item) and (count <= grid.count if grid.is_film else count == grid.count) for grid in grids
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
    if len(shape) == 5:
        fits = _fits_video(request, tensor)
    if not fits:
        sent = f"pixels {list(image.shape)}" if isinstance(image, WireTensor) else "one file"
        if size is not None and not isinstance(image, WireTensor):
            sent += f" of {size[2]}×{size[1]}"
        raise BadAnswer(
            "the server answered with another tensor",
            saw=f"{tensor.dtype} {list(shape)}",
            expected=f"floats [N, C, H/f, W/f] of {sent}",
        )


def _fits_video(request: EncodeRequest, tensor: WireTensor) -> bool:
    """Return whether floats (B, C, f, h, w) or (B, f, C, h, w) can be the latents of a video."""
    size, image = _image_size(request.image), request.image
    batches = {1}
    if isinstance(image, WireTensor) and len(image.shape) == 5:
        batches = {image.shape[0]}
    elif isinstance(image, WireTensor) and len(image.shape) == 4 and tensor.shape[2] == 1:
        batches = {1, image.shape[0]}  # pictures, to a model whose latents have an axis of one frame
    if tensor.dtype == "uint8" or tensor.shape[0] not in batches:
        return False
    if size is None:
        return True
    sides = {size[1:]} if isinstance(image, WireTensor) else {size[1:], size[:0:-1]}
    return min(tensor.shape[1:3]) <= max(1, size[0] // tensor.shape[0]) and any(
        (side[0] // factor, side[1] // factor) == tensor.shape[3:]
        for side in sides
        for factor in range(1, _MOST_FACTOR + 1)
    )


def _check_file(request: DecodeRequest, answer: FileAnswer) -> None:
    data = answer.data
    if request.output == "video":
        if answer.media_type != request.video.media_type or not is_whole(data):
            raise _cut_short("video", data)
        return
    if sniff_picture(data) is None or not is_whole(data):
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


def _image_size(image: PictureFile | VideoFile | WireTensor) -> tuple[int, int, int] | None:
    """Return (count, height, width) of the input of an encode; None if unknown."""
    if isinstance(image, VideoFile) or (isinstance(image, PictureFile) and is_animated_webp(image.data)):
        return None
    if isinstance(image, PictureFile):
        size = picture_size(image.data)
        return None if size is None else (1, *size)
    if len(image.shape) == 5:
        return image.shape[0] * image.shape[2], image.shape[3], image.shape[4]
    if len(image.shape) not in (3, 4):
        return None
    count, item = (image.shape[0], image.shape[1:]) if len(image.shape) == 4 else (1, image.shape)
    height, width = item[:2] if image.dtype == "uint8" and item[2] == 3 else item[1:]
    return count, height, width
