"""Videos that are written as they arrive."""

from __future__ import annotations

import abc
import contextlib
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, get_args, overload

import anyio.to_thread
import httpx

from ..errors import BadAnswer, RequestError
from ..protocol import DecodeRequest, VideoOptions
from ..protocol.video_formats import DEFAULT_VIDEO, VideoFormat
from . import transport_errors
from .address import Address
from .answer_limits import most_bytes
from .flow import Flows, path_of
from .flow_types import Arrived, Emit, Flow, FrameProgress, More, Progress, Terms
from .vae_requests import decode_request

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .call_types import DecodeVideoOptions, Latents

_HEADER = struct.Struct(">I4s")


class FrameCounter:
    """Counts the frames of a video file whose bytes come in order, of MP4 and WebM as this project writes them.

    Attributes:
        frames: The number so far; 0 for other files.
        is_at_end: Whether the bytes so far may be a whole file.
    """

    def __init__(self, video_format: VideoFormat) -> None:
        self._format = video_format
        self._rest = b""
        self._skip = 0
        self.frames = 0
        self.is_at_end = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._format == "mp4":
            self._feed_boxes(data)
            return
        self.is_at_end = True
        if self._format == "webm":
            seen = self._rest + data
            self.frames += seen.count(_CLUSTER)
            self._rest = seen[-3:]

    def _feed_boxes(self, data: bytes) -> None:
        left = self._rest + data
        while True:
            skipped = min(self._skip, len(left))
            self._skip -= skipped
            left = left[skipped:]
            self.is_at_end = not self._skip and not left
            if self._skip or len(left) < _HEADER.size:
                self._rest = left
                return
            size, kind = _HEADER.unpack_from(left)
            if size < _HEADER.size:
                raise BadAnswer("the video cannot be read", saw=f"a box of {size} bytes", hint="once more")
            self.frames += kind == b"moof"
            self._skip = size


_CLUSTER = b"\x1fC\xb6u"


def video_flow(
    flows: Flows, request: DecodeRequest, model: str | None, terms: Terms, on_frame: FrameProgress | None
) -> Flow[None]:
    """Emit the bytes of a video file as they arrive.

    A lost connection is not followed by another attempt once bytes were emitted.
    """
    until = flows.begin(terms)
    heads: list[tuple[Arrived, Address]] = []

    def opened(arrived: Arrived, address: Address) -> None:
        media_type = arrived.headers.get("content-type", "").partition(";")[0].strip().lower()
        if arrived.seconds is not None or media_type != request.video.media_type:
            raise BadAnswer(
                "the server answered with another file", saw=media_type, expected=request.video.media_type
            )
        heads.append((arrived, address))

    yield from flows.exchange(
        flows.post(request, path_of(request, model), terms, opens="file"), opened, until, model
    )
    head, address = heads[-1]
    flows.pass_on(head.headers, str(address))
    said = head.headers.get("hybridge-frames", "")
    total = int(said[:9]) if said.isdecimal() else None
    counter, received, most = FrameCounter(request.video.format), 0, most_bytes(request)
    try:
        while True:
            data = yield More()
            if isinstance(data, httpx.RequestError):
                raise flows.blamed(transport_errors.loss(data, address))
            if not data:
                break
            received += len(data)
            if received > most:
                raise BadAnswer(
                    "the answer is larger than what was asked for can be",
                    saw=f"{received} bytes or more",
                    expected=f"at most {most} bytes",
                )
            counter.feed(data)
            if terms.progress is not None:
                terms.progress("down", received, None)
            if on_frame is not None and counter.frames:
                on_frame(counter.frames, total)
            yield Emit(data)
        if not counter.is_at_end:
            raise BadAnswer("the video is cut short", saw=f"{received} bytes", hint="once more")
    except BadAnswer as error:
        raise flows.blamed(transport_errors.named(error, address)) from None


def video_request(
    latents: Any, to: str | Path | None, video: VideoOptions | None, model: str | None, arguments: dict[str, Any]
) -> tuple[DecodeRequest, str | None]:
    """Return the request for the arguments of :meth:`VideoCalls.decode_video`, and the model to ask."""
    if isinstance(latents, DecodeRequest):
        return latents, model
    if to is not None:
        suffix = Path(to).suffix.lower().removeprefix(".")
        if suffix not in get_args(VideoFormat):
            raise RequestError(
                "unknown video format",
                saw=f"{Path(to).name}",
                expected="one of " + ", ".join(f".{name}" for name in get_args(VideoFormat)),
            )
        if video is None:
            video = VideoOptions(suffix)  # type: ignore[arg-type] # get_args returns Any
        elif video.format != suffix:
            raise RequestError("two video formats", saw=f"{video.format} and .{suffix}", expected="one")
    request, _, model = decode_request(
        latents, model=model, output="video", video=video or DEFAULT_VIDEO, **arguments
    )
    return request, model


@contextlib.contextmanager
def written(to: str | Path) -> Iterator[BinaryIO]:
    """Open a file to write, which takes its name when it is whole, and is removed if it does not become so."""
    target = Path(to)
    partial = target.with_name(target.name + ".part")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class _VideoCalls(abc.ABC):
    _flows: Flows

    @abc.abstractmethod
    def _terms(self, deadline_s: float | None, progress: Progress | None) -> Terms: ...


class VideoCalls(_VideoCalls):
    """The blocking client's call for videos."""

    @abc.abstractmethod
    def _stream(self, flow: Flow[Any]) -> Iterator[Any]: ...

    @overload
    def decode_video(
        self, latents: Latents | DecodeRequest, to: None = None, **options: Unpack[DecodeVideoOptions]
    ) -> bytes: ...
    @overload
    def decode_video(
        self, latents: Latents | DecodeRequest, to: str | Path, **options: Unpack[DecodeVideoOptions]
    ) -> Path: ...
    def decode_video(
        self,
        latents: Any,
        to: str | Path | None = None,
        *,
        video: VideoOptions | None = None,
        model: str | None = None,
        on_frame: FrameProgress | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> bytes | Path:
        """Decode latents to a video file, and write it while later frames are decoded.

        Args:
            latents: As for :meth:`decode`; or a DecodeRequest for a video, which says all of the rest.
            to: The path of the file, with the suffix of its format; None returns its bytes.  The file has its name
                once it is whole; until then, ``.part`` is added.
            video: Format, frames per second, codec and pixel format; if None, the format follows from ``to``, and
                is MP4 without it.
            model, deadline_s, progress: As for :meth:`decode`; no total is known to ``progress``.
            on_frame: ``on_frame(frames that have arrived, all frames)``; for MP4 and WebM.
            options: The other arguments of :meth:`decode`, except for ``output`` and ``image_format``.

        Raises:
            ServerUnreachable: when the connection is lost; it is not tried again once bytes have arrived.
        """
        request, model = video_request(latents, to, video, model, options)
        flow = video_flow(self._flows, request, model, self._terms(deadline_s, progress), on_frame)
        parts = self._stream(flow)
        if to is None:
            return b"".join(parts)
        with written(to) as file:
            for part in parts:
                file.write(part)
        return Path(to)


class AsyncVideoCalls(_VideoCalls):
    """The async client's call for videos."""

    @abc.abstractmethod
    def _stream(self, flow: Flow[Any]) -> AsyncIterator[Any]: ...

    @overload
    async def decode_video(
        self, latents: Latents | DecodeRequest, to: None = None, **options: Unpack[DecodeVideoOptions]
    ) -> bytes: ...
    @overload
    async def decode_video(
        self, latents: Latents | DecodeRequest, to: str | Path, **options: Unpack[DecodeVideoOptions]
    ) -> Path: ...
    async def decode_video(
        self,
        latents: Any,
        to: str | Path | None = None,
        *,
        video: VideoOptions | None = None,
        model: str | None = None,
        on_frame: FrameProgress | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> bytes | Path:
        """As :meth:`Client.decode_video`."""
        request, model = video_request(latents, to, video, model, options)
        flow = video_flow(self._flows, request, model, self._terms(deadline_s, progress), on_frame)
        parts = self._stream(flow)
        if to is None:
            return b"".join([part async for part in parts])
        with written(to) as file:
            async for part in parts:
                await anyio.to_thread.run_sync(file.write, part)
        return Path(to)
