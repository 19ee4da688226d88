"""Write video files while their frames come.

This needs NumPy and PyAV, and Pillow for a GIF; each is imported where it is used.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from .messages import DEFAULT_QUALITY, FileAnswer
from .tensor import WireTensor
from .video_formats import DEFAULT_VIDEO, VideoOptions

if TYPE_CHECKING:
    import av
    import numpy
    from av.video.stream import VideoStream

#: Colours of a GIF's frame, and by how much a frame is reduced to find them.
_COLOURS, _REDUCED = 256, 4


def _x264(crf: float) -> tuple[str, dict[str, str]]:
    # Without B-frames a frame's time is that of its decoding, so that fragments need no list of edits, which some
    # players do not read.  A short look-ahead lets a frame leave after five others, not after 40.
    params = "bframes=0:rc-lookahead=4:sync-lookahead=0"
    return "libx264", {"crf": f"{crf:.1f}", "preset": "veryfast", "x264-params": params}


def _x265(crf: float) -> tuple[str, dict[str, str]]:
    # x265's scale is about 5 above x264's.
    params = "bframes=0:rc-lookahead=4:frame-threads=1:log-level=none"
    return "libx265", {"crf": f"{crf + 5:.1f}", "preset": "veryfast", "x265-params": params}


def _av1(crf: float) -> tuple[str, dict[str, str]]:
    return "libsvtav1", {"crf": f"{_of_63(crf)}", "preset": "9", "svtav1-params": "pred-struct=1"}


def _vp9(crf: float) -> tuple[str, dict[str, str]]:
    speed = {"deadline": "realtime", "cpu-used": "6", "lag-in-frames": "0", "row-mt": "1"}
    return "libvpx-vp9", {"crf": f"{_of_63(crf)}", "b": "0", **speed}


def _of_63(crf: float) -> int:
    """x264's scale of 0 to 51 → 0 to 63."""
    return round(crf * 63 / 51)


#: The encoder of each codec with its options, by the quality on x264's scale.
_ENCODERS: dict[str, Callable[[float], tuple[str, dict[str, str]]]] = {
    "h264": _x264,
    "hevc": _x265,
    "av1": _av1,
    "vp9": _vp9,
}

#: How each container is written, so that each frame leaves as soon as it is compressed.
_CONTAINERS = {
    "mp4": {"movflags": "empty_moov+default_base_moof+frag_every_frame"},
    "webm": {"cluster_time_limit": "1"},
    "gif": {"loop": "0"},
    "webp": {"loop": "0"},
}
_FLAGS = {"fflags": "+flush_packets+bitexact"}


def _encoder(options: VideoOptions, quality: int) -> tuple[str, dict[str, str], str]:
    """Return the encoder's name, its options, and the pixel format of its input."""
    codec = options.actual_codec
    if codec is not None:
        return *_ENCODERS[codec](crf_of(quality)), str(options.actual_pixel_format)
    if options.format == "gif":
        return "gif", {}, "pal8"
    return "libwebp_anim", {"quality": str(quality), "compression_level": "2"}, "bgra"


def check_encoder(options: VideoOptions) -> None:
    """Check that this machine's libraries can write such a file.

    Raises:
        RequestError: if they cannot; it names the codecs for which there is an encoder.
    """
    import av

    name, _, _ = _encoder(options, DEFAULT_QUALITY)
    if name not in av.codecs_available:
        others = [known for known, make in _ENCODERS.items() if make(0.0)[0] in av.codecs_available]
        raise RequestError(
            f"the server's video library has no encoder for {options.actual_codec or options.format}",
            saw=f"no {name}",
            expected="one of " + ", ".join(others),
        )


class _Collected(io.RawIOBase):
    """A file that cannot be sought in; what was written to it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes = bytearray()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        self._bytes += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._bytes)
        self._bytes.clear()
        return taken


class VideoWriter:
    """Writes one video file, from a few frames at a time to a few bytes at a time.

    It holds the frames that the encoder looks ahead, about five.  A WebP has its size at its beginning, so all of
    its bytes, and no frames, are held until the end.  Its methods take a processor for some milliseconds for each
    frame; they may be called from any thread, but one at a time.

    Args:
        options: The kind of file.
        width: Of each frame, in pixels.
        height: Of each frame, in pixels.
        quality: 1 to 100; docs/protocol.md has what it means to each codec.  A GIF does not use it.
        comment: For the metadata of an MP4 or a WebM; the others have no place for it.

    Raises:
        RequestError: for a size that the format cannot have, or an encoder that this machine's libraries lack.
    """

    def __init__(
        self, options: VideoOptions, width: int, height: int, *, quality: int = DEFAULT_QUALITY, comment: str = ""
    ) -> None:
        import av

        options.check_size(width, height)
        self.options = options
        self._size = width, height
        self._padding = options.padding(width, height)
        self._count = 0
        self._file: _Collected | io.BytesIO = io.BytesIO() if options.format == "webp" else _Collected()
        name, settings, self._format = _encoder(options, quality)
        check_encoder(options)
        self._container = av.open(
            self._file, "w", format=options.format, options={**_CONTAINERS[options.format], **_FLAGS}
        )
        if comment:
            self._container.metadata["comment"] = comment
        stream: VideoStream = self._container.add_stream(name, rate=options.rate, options=settings)
        stream.width, stream.height = width + self._padding[0], height + self._padding[1]
        stream.pix_fmt = self._format
        if options.actual_codec is not None:
            _tag_colours(stream)
            stream.codec_context.thread_count = 2  # each further thread holds a frame back
        self._stream = stream

    def add(self, frames: numpy.ndarray[Any, Any]) -> bytes:
        """Write frames, uint8 (f, H, W, 3), and return the bytes of the file that are ready, perhaps none.

        Raises:
            ValueError: for frames of another shape or dtype.
        """
        width, height = self._size
        if frames.dtype.name != "uint8" or frames.ndim != 4 or frames.shape[1:] != (height, width, 3):
            raise ValueError(f"expected uint8 (f, {height}, {width}, 3), saw {frames.dtype} {frames.shape}")
        for rgb in frames:
            frame = self._frame(rgb)
            frame.pts, frame.time_base = self._count, 1 / self.options.rate
            # The encoder is opened with the first frame.
            with nullcontext() if self._count else _without_real_time():
                self._container.mux(self._stream.encode(frame))
            self._count += 1
        return self._taken()

    def finish(self) -> bytes:
        """Write the end of the file, and return the bytes that are left."""
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._file.getvalue() if isinstance(self._file, io.BytesIO) else self._file.take()

    def close(self) -> None:
        """Give up: free what the encoder holds.  Not needed after :meth:`finish`."""
        self._container.close()

    def _taken(self) -> bytes:
        return b"" if isinstance(self._file, io.BytesIO) else self._file.take()

    def _frame(self, rgb: numpy.ndarray[Any, Any]) -> av.VideoFrame:
        import av
        import numpy as np

        if any(self._padding):
            rgb = np.pad(rgb, ((0, self._padding[1]), (0, self._padding[0]), (0, 0)), mode="edge")
        if self._format == "pal8":
            return _with_palette(rgb)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        if self._format == "bgra":
            return frame.reformat(format="bgra")
        return frame.reformat(format=self._format, **_bt709())


@contextmanager
def _without_real_time() -> Iterator[None]:
    """Take back real-time priority that threads of this process were given meanwhile.

    SVT-AV1, when it runs as root, gives it to the thread that opens it and to all its own; every other process on
    these processors then waits until the film is encoded.
    """
    if not hasattr(os, "sched_getscheduler") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            for thread in map(int, os.listdir("/proc/self/task")):
                with suppress(ProcessLookupError):
                    if os.sched_getscheduler(thread) != os.SCHED_OTHER:
                        os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def crf_of(quality: int) -> float:
    """Return a quality of 1 to 100 on x264's scale: 95 is 17, without artefacts, and 75 its default."""
    return min(51.0, 53.0 - 0.38 * quality)


def _bt709() -> dict[str, Any]:
    from av.video.reformatter import ColorRange, Colorspace

    return {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}


def _tag_colours(stream: VideoStream) -> None:
    """Set them explicitly: otherwise players guess the matrix from the height, which shifts the colours."""
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

    context = stream.codec_context
    context.colorspace = Colorspace.ITU709
    context.color_primaries = ColorPrimaries.BT709
    context.color_trc = ColorTrc.BT709
    context.color_range = ColorRange.MPEG


def _with_palette(rgb: numpy.ndarray[Any, Any]) -> av.VideoFrame:
    """Return a frame in 256 colours of its own, found in a sixteenth of its pixels, dithered."""
    import av
    import numpy as np
    from PIL import Image

    picture = Image.fromarray(rgb)
    small = picture.resize([max(1, side // _REDUCED) for side in picture.size], Image.Resampling.NEAREST)
    found = small.quantize(_COLOURS, Image.Quantize.MEDIANCUT)
    indices = np.asarray(picture.quantize(palette=found))
    colours = np.asarray(found.getpalette(), np.uint8).reshape(-1, 3)
    palette = np.full((_COLOURS, 4), 255, np.uint8)
    palette[: len(colours), 1:] = colours
    return av.VideoFrame.from_ndarray((indices, palette), format="pal8")


def write_video(
    pixels: WireTensor, options: VideoOptions | None = None, *, quality: int = DEFAULT_QUALITY, comment: str = ""
) -> FileAnswer:
    """Write frames, uint8 (F, H, W, 3), as one file; ``comment`` is for its metadata.

    Raises:
        RequestError: as :class:`VideoWriter` does.
    """
    options = options or DEFAULT_VIDEO
    _, height, width, _ = pixels.shape
    writer = VideoWriter(options, width, height, quality=quality, comment=comment)
    return FileAnswer(writer.add(pixels.to_numpy()) + writer.finish(), options.media_type)
