"""One backend of the local kind in an actor: takes orders of the front and yields what becomes of them.

Knows no Ray; :mod:`.cluster` makes an actor of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

from ..errors import EngineFailure, HybridgeError
from ..protocol import DecodeRequest
from ..server.local_backend import LocalBackend
from ..server.scheduling.film import Film
from ..server.scheduling.job import Job, Progress, Result
from ..server.scheduling.vae_job import VaeJob
from .messages import KnownReceipt, Order, Piece, ReplicaState, Reply

log = logging.getLogger("hybridge.replica")

#: Makes the backend of a replica, in its process.
MakeBackend = Callable[[], LocalBackend]

#: Least seconds between two reports of progress within one state, so that long jobs do not flood the front.
_REPORT_S = 0.05


class Replica:
    """A replica.

    Args:
        name: Its name in the cluster.
        node: The machine that it runs on.
        make_backend: Makes its backend.
    """

    def __init__(self, name: str, node: str, make_backend: MakeBackend) -> None:
        self._name, self._node = name, node
        self._backend = make_backend()

    def describe(self) -> ReplicaState:
        """Return what it says about itself."""
        backend = self._backend
        infos = tuple(backend.info())
        failed = frozenset(info.part for info in infos if backend.has_failed(info.part))
        shares = {info.part: backend.may_share(info.part) for info in infos}
        return ReplicaState(self._name, self._node, infos, backend.load(), failed, shares, backend.health())

    def fingerprint(self, part: str) -> dict[str, Any]:
        """See :meth:`Backend.fingerprint`; reads files, so do not call it on the event loop."""
        return dict(self._backend.fingerprint(part))

    def close(self) -> None:
        """End its backend."""
        self._backend.close()

    async def run(self, order: Order) -> AsyncGenerator[Reply, None]:
        """Run a job.  Yields its progress and the bytes of its film, and last its result or its error.

        Ending the iteration takes the job off the queue, or stops it.
        """
        replies: asyncio.Queue[Reply] = asyncio.Queue()
        # Accepted by the front, whose limits apply; this queue holds the few jobs that were sent here.
        job = replace(order.job, is_patient=True)
        film = None
        if order.has_film and isinstance(job, VaeJob):
            film = film_of(job)
            job = replace(job, film=film)
        report = _Reporter(replies.put_nowait) if order.tells_progress else None

        def on_end(ended: asyncio.Future[Any]) -> None:
            if not ended.cancelled():
                ended.exception()  # noted, or it would be logged where nobody awaits it
            replies.put_nowait(_END)

        tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._outcome(job, report))]
        if film is not None:
            tasks.append(asyncio.ensure_future(_pieces(film, replies)))
        ending = asyncio.gather(*tasks)
        ending.add_done_callback(on_end)
        try:
            while (reply := await replies.get()) is not _END:
                yield reply
            outcome, *film_errors = await ending
            failure = next((error for error in film_errors if error is not None), None)
            yield outcome if failure is None or isinstance(outcome, HybridgeError) else failure
        finally:
            ending.cancel()
            if film is not None:
                film.close()

    async def run_silently(self, order: Order) -> Reply:
        """Run a job that reports nothing, and return its result or its error."""
        return await self._outcome(replace(order.job, is_patient=True), None)

    async def _outcome(self, job: Job[Any], report: Callable[[Progress], None] | None) -> Result | HybridgeError:
        film = job.film if isinstance(job, VaeJob) else None
        try:
            result = await self._backend.run(job, report)
            result = await _travelling(job, result, is_written=film is None)
        except HybridgeError as error:
            if film is not None:
                film.close(error)
            error.__traceback__ = None  # its frames hold tensors
            return error
        except Exception as error:
            log.exception("a %s job failed", job.part)
            if film is not None:
                film.close()
            return EngineFailure("an unexpected failure in a replica", saw=type(error).__name__)
        return result


#: Ends the replies of an order; the outcome follows it.
_END = Piece(b"")


class _Reporter:
    """Passes progress on, but not every small step of it."""

    def __init__(self, put: Callable[[Progress], None]) -> None:
        self._put = put
        self._state, self._at = "", 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.state != self._state or now - self._at >= _REPORT_S:
            self._state, self._at = progress.state, now
            self._put(progress)


async def _travelling(job: Job[Any], result: Result, *, is_written: bool) -> Result:
    """The result as it is sent to the front: with its response, where writing that takes long."""
    milliseconds = dict(result.milliseconds)
    if is_written and not job.is_quick_to_write(result):
        begun = time.perf_counter()
        result = result.as_written(await asyncio.to_thread(job.write, result))
        milliseconds["encode"] = 1e3 * (time.perf_counter() - begun)
    receipt = None if result.receipt is None else KnownReceipt(result.receipt(False))
    return replace(result, milliseconds=milliseconds, receipt=receipt)


async def _pieces(film: Film, replies: asyncio.Queue[Reply]) -> HybridgeError | None:
    """Send a film while it is written; return what ended it early."""
    try:
        async for piece in film.pieces():
            replies.put_nowait(Piece(piece))
    except HybridgeError as error:
        return error
    return None


def film_of(job: VaeJob) -> Film:
    """Return a film for the frames of a decode job whose answer is a file with one video."""
    request = job.request
    assert isinstance(request, DecodeRequest)  # noqa: S101 - others have no film
    return Film(request.video, job.size.width, job.size.height, request.quality)
