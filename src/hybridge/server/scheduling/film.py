"""A video file that is written while its frames are decoded, and read while it is written.

Three parties meet here.  The device thread puts frames in; it waits for the encoder when two parts of the film are
under way, and never for a client.  The encoder is a thread for as long as there is something to encode.  The reader
takes what is ready; what it has not taken lies in memory, and in a temporary file from a certain size on.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from anyio import to_thread

from ...errors import EngineFailure, HybridgeError, Stopped, StorageFailure

if TYPE_CHECKING:
    import numpy

    from ...protocol import VideoOptions
    from ...protocol.receipt import Receipt
    from ...protocol.video_writer import VideoWriter

log = logging.getLogger("hybridge.film")

#: Bytes of a film in memory before it goes to a temporary file.
_MEMORY_BYTES = 8 * 2**20

#: Bytes that are read at a time.
_PIECE_BYTES = 128 * 1024

#: Parts that may wait for the encoder, besides the one that it works on.
_WAITING = 1


class Film:
    """One video file in the making.

    Args:
        options: The kind of file.
        width: Of each frame, in pixels.
        height: Of each frame, in pixels.
        quality: 1 to 100.
        memory_bytes: Of the file, before it goes to disk.
        comment: Returns what the file says of its making, for its metadata; called by the encoder before the first
            frame, and may wait.

    Attributes:
        options: The kind of file.
        receipt: Returns what makes it, as :attr:`.job.Result.receipt` does; None until :meth:`begin` is told it.
    """

    def __init__(
        self,
        options: VideoOptions,
        width: int,
        height: int,
        quality: int,
        *,
        memory_bytes: int = _MEMORY_BYTES,
        comment: Callable[[Receipt], str] | None = None,
    ) -> None:
        self.options = options
        self.receipt: Callable[[bool], Receipt] | None = None
        self._comment = comment
        self._size, self._quality = (width, height), quality
        self._writer: VideoWriter | None = None
        self._change = threading.Condition()
        self._parts: deque[numpy.ndarray[Any, Any]] = deque()
        self._accepted = self._skipped = self._taken = 0
        self._is_encoding = self._is_ended = self._is_complete = self._is_closed = False
        self._error: HybridgeError | None = None
        self._on_change: Callable[[], object] = lambda: None
        self._memory_bytes = memory_bytes
        self._file: tempfile.SpooledTemporaryFile[bytes] | None = None

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------- the device thread

    def begin(self, receipt: Callable[[bool], Receipt] | None = None) -> None:
        """Say that frames come from the first one on, and what makes them.

        A run can be made again, in less memory; the frames that it gave before are not taken twice.
        """
        with self._change:
            self._skipped = 0
            self.receipt = receipt

    def put(self, frames: numpy.ndarray[Any, Any]) -> None:
        """Add frames, uint8 (f, H, W, 3), in order; waits until the encoder has room.

        Raises:
            Stopped: when nobody reads the film any more.
            HybridgeError: when it cannot be written.
        """
        with self._change:
            known = min(len(frames), self._accepted - self._skipped)
            self._skipped += len(frames)
            if known == len(frames):
                return
            self._change.wait_for(lambda: len(self._parts) < _WAITING or self._is_over)
            self._check()
            self._accepted += len(frames) - known
            self._parts.append(frames[known:])
            self._encode_soon()

    def end(self) -> None:
        """Say that there are no more frames."""
        with self._change:
            self._is_ended = True
            self._encode_soon()

    @property
    def has_begun(self) -> bool:
        """Whether a part of it was made."""
        return self._accepted > 0 or self._file is not None

    @property
    def frames(self) -> int:
        """The number of frames that were put in."""
        return self._accepted

    def feed(self, data: bytes, *, is_last: bool = False) -> None:
        """Add bytes of a file that is written elsewhere, instead of frames.

        Raises:
            Stopped: when nobody reads the film any more.
            StorageFailure: when the temporary file cannot be written.
        """
        with self._change:
            self._check()
        try:
            self._write(data, is_complete=is_last)
        except OSError as error:
            raise _not_kept(error) from None

    # -------------------------------------------------------------------------------------- the encoder

    @property
    def _is_over(self) -> bool:
        return self._is_closed or self._error is not None

    def _check(self) -> None:
        if self._error is not None:
            raise copy.copy(self._error)  # two threads may raise it
        if self._is_closed:
            raise Stopped("nobody reads this video any more")

    def _encode_soon(self) -> None:
        if not self._is_encoding and not self._is_over:
            self._is_encoding = True
            threading.Thread(target=self._encode, name="hybridge-film", daemon=True).start()

    def _encode(self) -> None:
        try:
            while self._encode_part():
                pass
        except HybridgeError as error:
            self._fail(error)
        except OSError as error:
            self._fail(_not_kept(error))
        except Exception as error:
            log.exception("a video cannot be encoded")
            self._fail(EngineFailure("an unexpected failure in the video encoder", saw=type(error).__name__))

    def _encode_part(self) -> bool:
        """Encode a part; False when there is nothing left to do for now."""
        with self._change:
            if self._is_over or self._is_complete or not (self._parts or self._is_ended):
                self._is_encoding = False
                if self._is_closed:
                    self._free()
                return False
            part = self._parts.popleft() if self._parts else None
            self._change.notify_all()
        writer = self._writer = self._writer or self._opened()
        if part is None:
            self._write(writer.finish(), is_complete=True)
            return True
        for index in range(len(part)):
            if self._is_over:
                break
            self._write(writer.add(part[index : index + 1]))
        return True

    def _opened(self) -> VideoWriter:
        from ...protocol.video_writer import VideoWriter

        said = self._comment(self.receipt(True)) if self._comment and self.receipt else ""
        return VideoWriter(self.options, *self._size, quality=self._quality, comment=said)

    def _write(self, data: bytes, *, is_complete: bool = False) -> None:
        with self._change:
            if data and not self._is_closed:
                if self._file is None:
                    self._file = tempfile.SpooledTemporaryFile(self._memory_bytes)  # noqa: SIM115 - see _free()
                    weakref.finalize(self, self._file.close)  # of a job that failed
                self._file.seek(0, 2)
                self._file.write(data)
            self._is_complete = is_complete
            self._tell()

    def _fail(self, error: HybridgeError) -> None:
        with self._change:
            self._error, self._is_encoding = error, False
            if self._is_closed:
                self._free()
            self._tell()

    def _tell(self) -> None:
        self._change.notify_all()
        self._on_change()

    # --------------------------------------------------------------------------------------- the reader

    @property
    def is_complete(self) -> bool:
        """Whether the whole file is written."""
        return self._is_complete

    @property
    def is_on_disk(self) -> bool:
        """Whether the file has outgrown memory."""
        return bool(getattr(self._file, "_rolled", False))

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the file while it is written.

        Raises:
            HybridgeError: when it cannot be written to its end; what was yielded by then is no video.
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def on_change() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(changed.set)

        with self._change:
            self._on_change = on_change
        while True:
            changed.clear()
            piece, is_last = await to_thread.run_sync(self._take)
            if piece:
                yield piece
            elif is_last:
                return
            else:
                await changed.wait()

    def whole(self) -> bytes:
        """Return the whole file; waits until it is written."""
        with self._change:
            self._change.wait_for(lambda: self._is_complete or self._is_over)
            self._check()
            if self._file is None:
                raise EngineFailure("no frames were decoded")
            self._file.seek(0)
            return self._file.read()

    def _take(self) -> tuple[bytes, bool]:
        """The next bytes that are ready, and whether there will be no more."""
        with self._change:
            self._check()
            if self._file is None:
                return b"", self._is_complete
            self._file.seek(self._taken)
            piece = self._file.read(_PIECE_BYTES)
            self._taken += len(piece)
            return piece, self._is_complete

    def close(self, error: HybridgeError | None = None) -> None:
        """Say that nobody reads the film any more, or why it will not be written to its end; frees it."""
        with self._change:
            self._error = self._error or error
            self._is_closed = True
            self._parts.clear()
            if not self._is_encoding:
                self._free()
            self._tell()

    def _free(self) -> None:
        if self._writer is not None and not self._is_complete:
            self._writer.close()
        self._writer = None
        if self._file is not None:
            self._file.close()
            self._file = None


def _not_kept(error: OSError) -> StorageFailure:
    log.warning("a video cannot be kept for its reader: %s", error)
    return StorageFailure("the temporary file of a video cannot be written", hint="again in a while")
