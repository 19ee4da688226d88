"""The video files that can be asked for: formats, codecs, pixel formats, and the ranges of their parameters.

This imports no library of pictures or video; :mod:`.video_writer` writes the files,
:mod:`.video_reader` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

from ..errors import RequestError, TooLarge

VideoFormat = Literal["mp4", "webm", "gif", "webp"]
VideoCodec = Literal["h264", "hevc", "av1", "vp9"]
PixelFormat = Literal["yuv420p", "yuv444p"]

#: Frames per second when a request does not say: HunyuanVideo's pipelines write 15, and diffusers' client cannot
#: ask for another rate.
DEFAULT_FPS = 15.0

#: The range of frames per second.  A GIF counts hundredths of a second, and players slow down what is faster than
#: two of them.
LEAST_FPS, MOST_FPS, MOST_GIF_FPS = 1.0, 240.0, 50.0

#: The media type of each format.
MEDIA_TYPES: Mapping[VideoFormat, str] = MappingProxyType(
    {"mp4": "video/mp4", "webm": "video/webm", "gif": "image/gif", "webp": "image/webp"}
)

#: The codecs of each format; the first is the default.
CODECS: Mapping[VideoFormat, tuple[VideoCodec, ...]] = MappingProxyType(
    {"mp4": ("h264", "hevc", "av1"), "webm": ("vp9", "av1"), "gif": (), "webp": ()}
)

#: The pixel formats of each codec; the first is the default, which every player reads.
PIXEL_FORMATS: Mapping[VideoCodec, tuple[PixelFormat, ...]] = MappingProxyType(
    {
        "h264": ("yuv420p", "yuv444p"),
        "hevc": ("yuv420p", "yuv444p"),
        "av1": ("yuv420p",),
        "vp9": ("yuv420p", "yuv444p"),
    }
)

#: Longest side of a frame in pixels: H.264's at its highest level, AV1's in its encoder, and WebP's header.
LONGEST_SIDE: Mapping[str, int] = MappingProxyType(
    {"h264": 16_384, "hevc": 16_384, "av1": 8_704, "vp9": 16_384, "gif": 16_384, "webp": 16_383}
)

#: Shortest side of a frame in pixels, where an encoder has such a bound.
SHORTEST_SIDE: Mapping[str, int] = MappingProxyType({"hevc": 64, "av1": 64})


@dataclass(frozen=True, slots=True)
class VideoOptions:
    """What kind of video file is asked for.

    Attributes:
        format: The file format.
        fps: Frames per second, 1 to 240; a GIF has at most 50.
        codec: One of the format's; None for its first.
        pixel_format: ``yuv420p`` stores colours at half of the size; ``yuv444p`` stores them whole, and fewer
            players read it.  None for the codec's first.

    Raises:
        RequestError: for values out of range, or that do not fit together.
    """

    format: VideoFormat = "mp4"
    fps: float = DEFAULT_FPS
    codec: VideoCodec | None = None
    pixel_format: PixelFormat | None = None

    def __post_init__(self) -> None:
        if self.format not in CODECS:
            raise _unknown("video format", self.format, CODECS)
        most = MOST_GIF_FPS if self.format == "gif" else MOST_FPS
        if not (math.isfinite(self.fps) and LEAST_FPS <= self.fps <= most):
            raise RequestError(
                f"fps is out of range for {self.format}",
                saw=f"{self.fps:g}",
                expected=f"{LEAST_FPS:g} to {most:g} frames per second",
            )
        codecs = CODECS[self.format]
        if self.codec is not None and self.codec not in codecs:
            raise RequestError(
                f"{self.format} has no such codec here",
                saw=f"codec={str(self.codec)[:40]}",
                expected="one of " + ", ".join(codecs) if codecs else f"none: {self.format} has only its own",
                hint=_format_with(self.codec),
            )
        codec = self.actual_codec
        formats = () if codec is None else PIXEL_FORMATS[codec]
        if self.pixel_format is not None and self.pixel_format not in formats:
            raise RequestError(
                f"{codec or self.format} has no such pixel format here",
                saw=f"pixel_format={str(self.pixel_format)[:40]}",
                expected="one of " + ", ".join(formats) if formats else f"none: {self.format} has only its own",
            )

    @property
    def actual_codec(self) -> VideoCodec | None:
        """The codec, chosen if it was not named; None for formats that have only their own."""
        return self.codec or next(iter(CODECS[self.format]), None)

    @property
    def actual_pixel_format(self) -> PixelFormat | None:
        """The pixel format, chosen if it was not named; None for formats that have only their own."""
        codec = self.actual_codec
        return None if codec is None else self.pixel_format or PIXEL_FORMATS[codec][0]

    @property
    def rate(self) -> Fraction:
        """Frames per second as a fraction, for example 24000/1001."""
        return Fraction(self.fps).limit_denominator(1001)

    @property
    def media_type(self) -> str:
        """The file's media type."""
        return MEDIA_TYPES[self.format]

    def check_size(self, width: int, height: int) -> None:
        """Check that the format can have frames of this size.

        Raises:
            RequestError: for a side that is too short.
            TooLarge: for a side that is too long.
        """
        name = self.actual_codec or self.format
        shortest, longest = SHORTEST_SIDE.get(name, 1), LONGEST_SIDE[name]
        is_long = max(width, height) > longest
        if is_long or min(width, height) < shortest:
            raise (TooLarge if is_long else RequestError)(
                f"{name} has no frames of this size",
                saw=f"{width}×{height}",
                expected=f"sides of {shortest} to {longest} pixels",
                hint="output_type=pt, which has no such bound" if is_long else "codec=h264",
            )

    def padding(self, width: int, height: int) -> tuple[int, int]:
        """Return the columns and rows that are added to a frame: yuv420p needs even sides."""
        return (width % 2, height % 2) if self.actual_pixel_format == "yuv420p" else (0, 0)

    def note(self, width: int, height: int) -> str | None:
        """Return what the receiver should hear of: frames that are padded."""
        columns, rows = self.padding(width, height)
        if not columns and not rows:
            return None
        return (
            f"the video is {width + columns}x{height + rows} pixels and the frames are {width}x{height}, because"
            " yuv420p needs even sides: the last column or row is repeated. pixel_format=yuv444p keeps the size"
        )


#: What an unmodified client asks for with ``output_type=mp4``.
DEFAULT_VIDEO = VideoOptions()


def _format_with(codec: str) -> str | None:
    found = [name for name, codecs in CODECS.items() if codec in codecs]
    return f"output_type={found[0]}" if found else None


def _unknown(what: str, saw: object, known: Mapping[VideoFormat, object]) -> RequestError:
    return RequestError(f"unknown {what}", saw=repr(saw)[:60], expected="one of " + ", ".join(known))


def sniff_video(data: bytes | memoryview) -> str | None:
    """Return the media type of an MP4 (or QuickTime), WebM (or Matroska) or GIF file by its first bytes, else None.

    An animated WebP begins like a picture; :func:`.picture_files.sniff_picture` knows it.
    """
    head = bytes(data[:12])
    if head[4:8] == b"ftyp" and head[8:12] not in _PICTURE_BRANDS:
        return MEDIA_TYPES["mp4"]
    if head[:4] == b"\x1aE\xdf\xa3":
        return MEDIA_TYPES["webm"]
    return MEDIA_TYPES["gif"] if head[:6] in (b"GIF87a", b"GIF89a") else None


#: ISO files that hold pictures: AVIF and HEIC.
_PICTURE_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1", b"hevc"})
