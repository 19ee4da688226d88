"""What a container holds for a decoder: the packets of one video track, and what its header says of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import RequestError


@dataclass(frozen=True, slots=True)
class Packets:
    """The compressed frames of one track.

    Attributes:
        codec: The decoder's name.
        config: The codec's configuration (libavcodec's extradata), or empty.
        width: Width of a stored frame in pixels, as the header says; the codec's own may differ.
        height: Its height.
        turns: Quarter turns clockwise for display.
        spans: Offset and size of each packet in the file, in the order of decoding.
        is_variable: Whether the frames have different durations.
    """

    codec: str
    config: bytes
    width: int
    height: int
    turns: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)
    is_variable: bool = False


class VideoTooLong(Exception):
    """A file declares more frames than are allowed.

    Attributes:
        count: How many it declares, or at least has.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


def unreadable_video(
    data: bytes, why: str, *, expected: str = "a whole MP4, WebM or GIF file", hint: str | None = None
) -> RequestError:
    """Return the error for a video file that cannot be read."""
    return RequestError(
        "the video file cannot be read",
        saw=f"{len(data)} bytes, {why}",
        expected=expected,
        hint=hint or "the film saved again, or its frames as a tensor",
    )


def cut_short(data: bytes, why: str) -> RequestError:
    """Return the error for a video file that ends too early."""
    return unreadable_video(data, f"cut short: {why}", hint="the whole file once more; it may have been cut short")


def unknown_codec(data: bytes, name: str) -> RequestError:
    """Return the error for a codec that is not read."""
    return unreadable_video(
        data,
        f"the codec {name[:20]!r}",
        expected="H.264, HEVC, AV1, VP8, VP9 or MPEG-4 part 2",
        hint="the film as H.264: ffmpeg -i FILM -c:v libx264 film.mp4",
    )
