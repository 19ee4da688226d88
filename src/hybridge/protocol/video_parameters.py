"""The parameters of a request that are about a video file, read from and written to a query."""

from __future__ import annotations

from ..errors import RequestError
from .query import Parameters
from .video_formats import (
    CODECS,
    DEFAULT_FPS,
    DEFAULT_VIDEO,
    PIXEL_FORMATS,
    PixelFormat,
    VideoCodec,
    VideoFormat,
    VideoOptions,
)

#: Parameters of a video file besides its format and its quality.
VIDEO_PARAMETERS = ("fps", "codec", "pixel_format")

_CODECS: dict[str, VideoCodec] = {
    **{codec: codec for codecs in CODECS.values() for codec in codecs},
    "h265": "hevc",
    "avc": "h264",
}
_PIXEL_FORMATS: dict[str, PixelFormat] = {name: name for names in PIXEL_FORMATS.values() for name in names}


def read_video_options(parameters: Parameters, video_format: VideoFormat | None) -> VideoOptions:
    """Return the kind of video file that is asked for; ``video_format`` is None for answers of another kind.

    Raises:
        RequestError: for a value out of range, and for a parameter of videos where no video is asked for.
    """
    if video_format is None:
        for name in VIDEO_PARAMETERS:
            if name in parameters:
                raise RequestError(
                    f"{name} is about a video file",
                    saw=f"{name} and no output_type of a video",
                    expected="output_type=mp4, webm, gif or webp",
                )
        return DEFAULT_VIDEO
    fps = parameters.number("fps")
    return VideoOptions(
        video_format,
        DEFAULT_FPS if fps is None else fps,
        parameters.choice("codec", _CODECS),
        parameters.choice("pixel_format", _PIXEL_FORMATS),
    )


def video_query(options: VideoOptions) -> dict[str, object]:
    """Return the parameters of a video file that are not what a server takes anyway."""
    return {
        "fps": None if options.fps == DEFAULT_FPS else options.fps,
        "codec": options.codec,
        "pixel_format": options.pixel_format,
    }
