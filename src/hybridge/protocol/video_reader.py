"""Read untrusted video files: MP4, QuickTime, WebM, Matroska, GIF and animated WebP.

This needs NumPy, PyAV for those with a codec, and Pillow for the others; each is imported where it is used.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import RequestError, TooLarge, UnsupportedMedia
from .media import read_picture
from .messages import PictureFile, VideoFile
from .mp4_boxes import read_mp4
from .picture_files import sniff_picture
from .tensor import WireTensor
from .video_formats import sniff_video
from .video_packets import Packets, VideoTooLong, cut_short, unreadable_video
from .webm_elements import read_webm
from .webp_chunks import webp_facts

if TYPE_CHECKING:
    import numpy

#: Most frames of a file that is read, whatever their size.
MAX_FRAMES = 16_384

#: Most bytes of one packet for each pixel of a frame, and in addition.
_BYTES_PER_PIXEL = 16
_BYTES_BESIDE = 64 * 1024

#: The unit of durations in milliseconds.
_TICK_MS = {"GIF": 10, "WEBP": 1}

_UNEVEN = "the frames have different durations, which are ignored: one follows another"

#: Pixels that a decoder adds to a side of its frames at most: whole blocks, and edges on both sides.
_EDGES = 256


def is_animation(data: bytes) -> bool:
    """Return whether a file is a video by :func:`sniff_video`, or a WebP of several frames."""
    if sniff_picture(data) == "image/webp":
        return _webp_facts(data)[2] > 1
    return sniff_video(data) is not None


def read_video(
    data: bytes,
    *,
    max_pixels: int,
    max_frames: int = MAX_FRAMES,
    multiple: int = 1,
    note: Callable[[str, str], object] = lambda _code, _text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> WireTensor:
    """Read the frames of an MP4, QuickTime, WebM, Matroska, GIF or animated WebP, as uint8 (F, H, W, 3).

    The container is read within bounds here; a decoder gets only the compressed frames of the first video track.
    Frames are turned upright as the header says.  Alpha is dropped, not blended.  Frames are returned one after
    another, however long each is shown; sound is ignored.

    Args:
        data: The file.
        max_pixels: Most pixels of all frames together (F × height × width); the header is checked before memory is
            taken, and the frames while they are decoded.
        max_frames: Most frames.
        multiple: The VAE's spatial factor: frames with other sides are resized (Lanczos) to the multiples below.
        note: Called with a sentence for each surprise to the sender: frames that were resized, or have different
            durations.
        should_stop: Called before each frame; True ends the reading.

    Raises:
        TooLarge: above ``max_pixels`` or ``max_frames``.
        RequestError: for a damaged file, one of an unknown codec, or one without frames.
    """
    media_type = sniff_video(data)
    bound = _Bound(data, max_pixels, max_frames, should_stop)

    def finished(frames: Iterator[numpy.ndarray[Any, Any]]) -> WireTensor:
        return bound.collect(_fitted(frames, multiple, note))

    try:
        if media_type in ("video/mp4", "video/webm"):
            packets = (read_mp4 if media_type == "video/mp4" else read_webm)(data, max_frames=max_frames)
            if packets.is_variable:
                note("uneven-frames", _UNEVEN)
            bound.declare(packets.width, packets.height, len(packets.spans))
            return finished(_decoded(data, packets, bound))
        if media_type == "image/gif":
            bound.declare(*_gif_facts(data, max_frames))
            return _read_animation(data, "GIF", bound, finished, note)
        if sniff_picture(data) == "image/webp":
            bound.declare(*_webp_facts(data))
            return _read_animation(data, "WEBP", bound, finished, note)
    except VideoTooLong as error:
        raise bound.too_many(error.count) from None
    raise unreadable_video(data, f"beginning with {data[:12]!r}", expected="an MP4, WebM, GIF or animated WebP")


def read_file(
    file: PictureFile | VideoFile,
    *,
    is_video: bool,
    max_pixels: int,
    multiple: int,
    note: Callable[[str, str], object] = lambda _code, _text: None,
) -> WireTensor:
    """Read what a model encodes from a file: uint8 (1, H, W, 3) of a picture, (F, H, W, 3) of a video.

    Args:
        file: A picture is a video of one frame to a model of videos; an animated WebP is a video to it.
        is_video: Whether the model encodes videos.
        max_pixels: Most pixels, of all frames together.
        multiple: The VAE's spatial factor.
        note: Called with a sentence for each surprise to the sender.

    Raises:
        UnsupportedMedia: for a video to a model of pictures.
        TooLarge, RequestError: as :func:`read_video` and :func:`.media.read_picture` do.
    """
    if is_video and (isinstance(file, VideoFile) or is_animation(file.data)):
        return read_video(file.data, max_pixels=max_pixels, multiple=multiple, note=note)
    if isinstance(file, VideoFile):
        raise UnsupportedMedia(
            "this model encodes pictures",
            saw=f"a video file, {sniff_video(file.data)}",
            expected="a PNG, JPEG or WebP file, or a tensor",
            hint="one of its frames as a PNG, or a model of videos",
        )
    return read_picture(file.data, max_pixels=max_pixels, multiple=multiple, note=note)


class _Bound:
    """What a video may take, and a video within it."""

    def __init__(self, data: bytes, max_pixels: int, max_frames: int, should_stop: Callable[[], bool]) -> None:
        self.data = data
        self.max_pixels, self.max_frames, self.should_stop = max_pixels, max_frames, should_stop

    def declare(self, width: int, height: int, frames: int) -> None:
        """Check what a header says."""
        if not width or not height:
            raise unreadable_video(self.data, f"frames of {width}×{height} pixels")
        if not frames:
            raise unreadable_video(self.data, "zero frames")
        if frames > self.max_frames:
            raise self.too_many(frames)
        self._check(width, height, frames)

    def too_many(self, frames: int) -> TooLarge:
        """Return the error for a video of too many frames."""
        return TooLarge(
            "the video has too many frames",
            saw=f"{frames} or more",
            expected=f"at most {self.max_frames}",
            hint="a part of it",
        )

    def collect(self, frames: Iterator[numpy.ndarray[Any, Any]]) -> WireTensor:
        """Return the frames as one tensor; check them again, because a header can be wrong."""
        pixels = bytearray()
        count, shape = 0, (0, 0)
        for frame in frames:
            height, width = frame.shape[:2]
            if count and (height, width) != shape:
                raise unreadable_video(
                    self.data, f"frames of {shape[1]}×{shape[0]} and then of {width}×{height} pixels"
                )
            shape, count = (height, width), count + 1
            if count > self.max_frames:
                raise self.too_many(count)
            self._check(width, height, count)
            pixels += frame.tobytes()
        if not count:
            raise unreadable_video(self.data, "zero frames")
        return WireTensor("uint8", (count, *shape, 3), pixels)

    def _check(self, width: int, height: int, frames: int) -> None:
        pixels = frames * width * height
        if pixels > self.max_pixels:
            raise TooLarge(
                "the video is too large",
                saw=f"{frames} frames of {width}×{height} = {pixels} pixels",
                expected=f"at most {self.max_pixels} pixels",
                hint="a part of it, or smaller frames",
            )


def _decoded(data: bytes, packets: Packets, bound: _Bound) -> Iterator[numpy.ndarray[Any, Any]]:
    """Yield the frames of a track, uint8 (H, W, 3), upright."""
    import av
    import numpy as np

    most_bytes = _BYTES_PER_PIXEL * packets.width * packets.height + _BYTES_BESIDE
    context: Any = av.CodecContext.create(packets.codec, "r")
    if packets.config:
        context.extradata = packets.config
    context.thread_count = 1
    # A codec's own header can tell of larger frames than the container's, and decoders take memory for several.
    area = (packets.width + _EDGES) * (packets.height + _EDGES)
    context.options = {"max_pixels": str(area)}
    spans: Iterator[tuple[int, int] | None] = iter([*packets.spans, None])
    try:
        for span in spans:
            if bound.should_stop():
                raise RequestError("nobody waits for this video any more")
            if span is not None and span[1] > most_bytes:
                raise unreadable_video(data, f"a frame of {span[1]} bytes")
            packet = None if span is None else av.Packet(data[span[0] : span[0] + span[1]])
            if span is not None and not span[1]:
                continue
            for frame in context.decode(packet):
                array = frame.to_ndarray(format="rgb24")
                yield np.rot90(array, -packets.turns) if packets.turns else array
    except av.FFmpegError as error:
        raise unreadable_video(data, f"{packets.codec}: {error.strerror}") from None


def _fitted(
    frames: Iterator[numpy.ndarray[Any, Any]], multiple: int, note: Callable[[str, str], object]
) -> Iterator[numpy.ndarray[Any, Any]]:
    """Yield frames whose sides are multiples of the VAE's factor."""
    import numpy as np
    from PIL import Image

    is_told = False
    for frame in frames:
        height, width = (side - side % multiple for side in frame.shape[:2])
        if not height or not width:
            raise RequestError(
                "the video is too small",
                saw=f"{frame.shape[1]}×{frame.shape[0]}",
                expected=f"at least {multiple}×{multiple}",
            )
        if (height, width) == frame.shape[:2]:
            yield frame
            continue
        if not is_told:
            is_told = True
            note(
                "picture-resized",
                f"the frames of {frame.shape[1]}x{frame.shape[0]} pixels were resized to {width}x{height}, because"
                f" sides must be multiples of {multiple}",
            )
        picture = Image.fromarray(np.ascontiguousarray(frame))
        yield np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def _read_animation(
    data: bytes,
    file_format: str,
    bound: _Bound,
    finished: Callable[[Iterator[numpy.ndarray[Any, Any]]], WireTensor],
    note: Callable[[str, str], object],
) -> WireTensor:
    """Read a GIF or a WebP with Pillow, within what a header and each frame may have."""
    from PIL import Image

    try:
        durations: set[float] = set()
        with Image.open(io.BytesIO(data), formats=(file_format,)) as file:
            read = finished(_animated(file, bound, durations))
        # A frame rate that is no whole number of ticks is written as durations that are one tick apart.
        if durations and max(durations) - min(durations) > _TICK_MS[file_format]:
            note("uneven-frames", _UNEVEN)
        return read
    except RequestError:
        raise
    except Exception as error:  # Pillow raises a dozen types for damaged files
        raise unreadable_video(data, f"{type(error).__name__}: {error}") from None


def _animated(file: Any, bound: _Bound, durations: set[float]) -> Iterator[numpy.ndarray[Any, Any]]:
    import numpy as np

    size = file.size
    for index in range(bound.max_frames + 1):
        if bound.should_stop():
            raise RequestError("nobody waits for this video any more")
        try:
            file.seek(index)
        except EOFError:
            return
        if file.size != size:
            raise unreadable_video(bound.data, "a frame that is larger than the first")
        yield np.asarray(file.convert("RGBA").convert("RGB"))
        durations.add(file.info.get("duration", 0))  # of a WebP, it is known when the frame is decoded


def _webp_facts(data: bytes) -> tuple[int, int, int]:
    try:
        return webp_facts(data)
    except struct.error:
        raise cut_short(data, "it ends in its header") from None


def _gif_facts(data: bytes, max_frames: int) -> tuple[int, int, int]:
    """Return width, height and frames of a GIF, which have to be counted (GIF89a, sections 17 to 27)."""
    width, height = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    try:
        at = 13 + (3 << (data[10] & 7) + 1) * (data[10] >> 7)
        frames = 0
        while data[at] != 0x3B:
            if data[at] == 0x2C:
                frames += 1
                if frames > max_frames:
                    raise VideoTooLong(frames)
                left, top, w, h = (int.from_bytes(data[at + n : at + n + 2], "little") for n in (1, 3, 5, 7))
                if left + w > width or top + h > height:
                    raise unreadable_video(data, "a frame that is larger than the file's own size")
                flags = data[at + 9]
                at = _gif_blocks_end(data, at + 11 + (3 << (flags & 7) + 1) * (flags >> 7))
            elif data[at] == 0x21:
                at = _gif_blocks_end(data, at + 2)
            else:
                raise unreadable_video(data, f"no part of a GIF at byte {at}")
    except IndexError:
        raise cut_short(data, "no end") from None
    return width, height, frames


def _gif_blocks_end(data: bytes, at: int) -> int:
    while data[at]:
        at += 1 + data[at]
    return at + 1
