"""The async jobs: requests that were accepted to be done later, their states, and how long their results are kept.

:mod:`.backlog` says which of them are in the queue, :mod:`.spool` stores their bytes.

This code runs on the event loop; threads access the disk.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ...errors import HybridgeError, NotDone, Overloaded, ShuttingDown, UnknownJob
from ...protocol import HttpResponse, write_failure
from ..error_responses import log_failure
from ..middleware.request_record import HUNG_UP, Observer, RequestRecord
from ..scheduling.job import Progress, ProgressCallback
from .backlog import Backlog
from .job_state import AsyncJob
from .store import ResultMissing, Store, StoredRequest, StoredResult, kept_result

log = logging.getLogger("hybridge.jobs")

#: Runs a request: (request, body, on_progress, record to fill) → the response that it would have had at once.
Answer = Callable[[StoredRequest, bytes, ProgressCallback, RequestRecord], Awaitable[HttpResponse]]

#: Too many to guess.
_ID_BYTES = 16

#: The last quarter of the limits is reserved for clients that have no jobs here.
_NEWCOMERS_SHARE = 1 / 4

#: Seconds between keep-alive comments in a stream of events: proxies cut connections that are silent for a minute.
_STILL_HERE_S = 20


@dataclass(frozen=True, slots=True)
class AsyncJobLimits:
    """Limits of what is stored.

    Attributes:
        jobs: Number of jobs, whether waiting, running or done.
        nbytes: Bytes of their requests and results.
        ttl_s: Seconds for which a result is kept.
    """

    jobs: int = 1000
    nbytes: int = 1024 * 2**20
    ttl_s: float = 3600.0


class AsyncJobRegistry:
    """The jobs of this server.

    Args:
        store: Stores their bytes.
        limits: How many jobs, and for how long.
        observers: Called with the record of each job when it ends; they must neither wait nor fail.
    """

    def __init__(
        self, store: Store, limits: AsyncJobLimits | None = None, observers: Sequence[Observer] = ()
    ) -> None:
        self._store = store
        self._observers = observers
        self._limits = limits or AsyncJobLimits()
        self._entries: dict[str, AsyncJob] = {}
        self._backlog = Backlog(self._begin)
        self._forgetting: set[asyncio.Task[None]] = set()
        self._answer: Answer | None = None
        self._ends_at: float | None = None
        self._is_closed = False

    async def open(self, answer: Answer) -> None:
        """Start to run jobs, first those that an earlier process left undone."""
        self._answer = answer
        for found in await asyncio.to_thread(self._store.recover):
            stored = found.stored
            record = RequestRecord(stored.request_id, stored.client, stored.model or "", stored.task or "")
            entry = self._entries[stored.id] = AsyncJob(stored, found.body_bytes, found.result_bytes, record)
            if found.done_at is None:
                self._backlog.add(entry)
            else:
                # A clock that went back would keep the result for longer than was promised.
                entry.done_at = min(found.done_at, time.time())
                entry.state = "done" if found.status == 200 else "failed"
                self._expire_later(entry)

    def begin_to_end(self, ends_at: float) -> None:
        """Start no more jobs that the next process can do; results in memory expire at ``ends_at``.

        Args:
            ends_at: In seconds since 1970.
        """
        self._ends_at = ends_at
        if self._store.is_durable:
            self._backlog.hold()

    async def finished(self) -> None:
        """Wait until nothing is left that would be lost with the process; what is on disk is not lost.

        That is jobs that are not done, and results made since :meth:`begin_to_end` that were neither fetched nor
        deleted.
        """
        while not self._store.is_durable:
            entries = self._entries.values()
            undone = next((entry for entry in entries if not entry.is_over), None)
            due = [entry for entry in entries if entry.is_due]
            if undone is None and not due:
                return
            if undone is None:
                log.info("%d results wait to be fetched; a second signal ends the server at once", len(due))
            await (undone or due[0]).changed.wait()

    async def close(self) -> None:
        """Stop all jobs and end all streams of events; may be called again.

        The next process resumes jobs that are on disk; others have failed.
        """
        self._answer = None
        self._backlog.hold()
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        late = ShuttingDown("the server shut down before this job was done", hint="another server")
        for entry in list(self._entries.values()):
            if entry.expiry is not None:
                entry.expiry.cancel()
            if not entry.is_over and self._store.is_durable:
                entry.state, entry.progress = "waiting", Progress("waiting")
            elif not entry.is_over:
                await self._finish(entry, write_failure(late))
        self._is_closed = True
        for entry in self._entries.values():
            entry.notify()
        self._store.close()

    async def accept(self, request: StoredRequest, body: bytes, *, result_bytes: int, record: RequestRecord) -> str:
        """Take a request and return its job's id; by then the request is as safe as the store is.

        Args:
            request: The request; its ``id`` and ``request_id`` are set here.
            body: The body.
            result_bytes: Most bytes of its result.
            record: The record of the HTTP request, from which the job's record is made.

        Raises:
            Overloaded: when too much is stored already.
            StorageFailure: when the request cannot be stored.
            ShuttingDown: when the server is about to end.
        """
        if self._answer is None:
            raise ShuttingDown("the server is shutting down", hint="another server, or again in a while")
        stored = replace(request, id=secrets.token_urlsafe(_ID_BYTES), request_id=record.request_id)
        about = RequestRecord(
            record.request_id, request.client, record.model, record.task, pictures=record.pictures
        )
        entry = AsyncJob(stored, len(body), result_bytes, about)
        self._check_room(request.client, entry.nbytes)
        self._entries[entry.stored.id] = entry
        keeping = asyncio.ensure_future(asyncio.to_thread(self._store.keep, entry.stored, body))
        try:
            await asyncio.shield(keeping)
        except BaseException:
            del self._entries[entry.stored.id]
            entry.state = "cancelled"
            entry.notify()
            await asyncio.shield(self._unkeep(entry, keeping))
            raise
        self._backlog.add(entry)
        return entry.stored.id

    async def request(self, job_id: str, client: str) -> tuple[StoredRequest, bytes]:
        """Return the request of a job, to run it again.

        Raises:
            UnknownJob: when there is no such job, or it is somebody else's.
        """
        entry = self._find(job_id, client)
        return entry.stored, await asyncio.to_thread(self._store.body, entry.stored)

    def status(self, job_id: str, client: str) -> dict[str, Any]:
        """Return the status of a job.

        Raises:
            UnknownJob: when there is no such job, or it is somebody else's.
        """
        return self._status(self._find(job_id, client))

    async def result(self, job_id: str, client: str) -> StoredResult:
        """Return a job's result: the response that the request would have had at once, which may be an error.

        The caller closes it.  A result that was damaged on disk is made again from its request.

        Raises:
            UnknownJob: when there is no such job, or it is somebody else's.
            NotDone: when the job is waiting or running, or has to run again.
            Overloaded: when too many results are being fetched.
        """
        entry = self._find(job_id, client)
        if not entry.is_over:
            raise NotDone(
                "the job is not done yet", saw=entry.state, hint=f"again later, or /v1/jobs/{job_id}/events"
            )
        try:
            kept = (
                await asyncio.to_thread(self._store.result, entry.stored)
                if entry.unkept is None
                else kept_result(entry.unkept)
            )
        except ResultMissing as lost:
            if self._find(job_id, client).is_over:
                self._do_again(entry, lost)
            raise NotDone(
                "the job is done again, because its result was damaged on disk",
                saw=lost.saw,
                hint=f"again later, or /v1/jobs/{job_id}/events",
            ) from None
        entry.is_due = False
        entry.notify()
        return kept

    async def events(self, job_id: str, client: str) -> AsyncIterator[dict[str, Any] | None]:
        """Yield a job's status now and after each change, until the job or the server ends; None as a keep-alive.

        Raises:
            UnknownJob: when there is no such job, or it is somebody else's.
        """
        entry = self._find(job_id, client)
        while True:
            changed = entry.changed
            yield self._status(entry)
            if entry.is_over or self._is_closed:
                return
            news = asyncio.ensure_future(changed.wait())
            try:
                while not news.done():
                    await asyncio.wait([news], timeout=_STILL_HERE_S)
                    if not news.done():
                        yield None
            finally:
                news.cancel()

    async def cancel(self, job_id: str, client: str) -> None:
        """Stop a job, between two strips if it runs, and delete it with its result.

        Raises:
            UnknownJob: when there is no such job, or it is somebody else's.
        """
        await self._forget(self._find(job_id, client))

    # ------------------------------------------------------------------------------------------ inside

    def _find(self, job_id: str, client: str) -> AsyncJob:
        entry = self._entries.get(job_id)
        # Without keys, knowing the id gives access: a client's address may change.
        has_owner = entry is not None and (client.startswith("key:") or entry.stored.client.startswith("key:"))
        if entry is None or (has_owner and entry.stored.client != client):
            raise UnknownJob(
                "no such job here",
                saw=repr(job_id[:40]),
                hint=f"results are kept for {self._limits.ttl_s:g} seconds",
            )
        return entry

    def _check_room(self, client: str, nbytes: int) -> None:
        entries = self._entries.values()
        is_here = any(entry.stored.client == client for entry in entries)
        share = 1 - _NEWCOMERS_SHARE if is_here else 1.0
        if len(entries) < self._limits.jobs * share and (
            sum(entry.nbytes for entry in entries) + self._store.stray_bytes + nbytes <= self._limits.nbytes * share
        ):
            return
        ends = [entry.done_at + self._limits.ttl_s for entry in entries if entry.done_at is not None]
        raise Overloaded(
            f"{len(entries)} jobs are kept already, which take {sum(e.nbytes for e in entries)} bytes at most",
            retry_after_s=min(ends) - time.time() if ends else self._limits.ttl_s,
            hint="DELETE jobs whose results you have",
        )

    async def _unkeep(self, entry: AsyncJob, keeping: asyncio.Future[None]) -> None:
        """Remove a request whose client got no id, once its thread has finished writing."""
        await asyncio.wait([keeping])
        with suppress(HybridgeError):  # what could not be kept need not be there to be removed
            await asyncio.to_thread(self._store.remove, entry.stored)

    def _do_again(self, entry: AsyncJob, lost: ResultMissing) -> None:
        log.warning("the result of a job was lost, and the job is done again: %s", lost)
        if entry.expiry is not None:
            entry.expiry.cancel()
        entry.state, entry.progress, entry.done_at = "waiting", Progress("waiting"), None
        self._backlog.add(entry)

    def _begin(self, entry: AsyncJob) -> None:
        assert self._answer is not None  # noqa: S101 - the backlog is held before there is none any more
        entry.task = asyncio.create_task(self._do(entry, self._answer))
        # Not at the end of the task itself: one that is cancelled before its first step does nothing at all.
        entry.task.add_done_callback(lambda _: self._leave(entry))

    def _leave(self, entry: AsyncJob) -> None:
        entry.task = None
        self._backlog.end(entry)

    async def _do(self, entry: AsyncJob, answer: Answer) -> None:
        response = await self._response(entry, answer)
        if response is not None:
            await self._finish(entry, response)
            self._expire_later(entry)
            entry.notify()

    async def _finish(self, entry: AsyncJob, response: HttpResponse) -> None:
        try:
            await asyncio.to_thread(self._store.finish, entry.stored, response)
        except HybridgeError as error:  # the next process with this spool does the job again
            log_failure(error)
            entry.unkept = response = write_failure(error)
        entry.result_bytes = len(response.body)
        entry.state, entry.done_at = ("done" if response.status == 200 else "failed"), time.time()
        entry.is_due = self._ends_at is not None
        self._tell_end(entry, response.status)

    def _tell_end(self, entry: AsyncJob, status: int) -> None:
        entry.record.status = status
        for observe in self._observers:
            observe(entry.record)

    async def _response(self, entry: AsyncJob, answer: Answer) -> HttpResponse | None:
        """Return the response; None if the server ends before it is made."""
        try:
            body = await asyncio.to_thread(self._store.body, entry.stored)
            return await answer(entry.stored, body, entry.on_progress, entry.record)
        except ShuttingDown:
            return None
        except HybridgeError as error:
            log_failure(error)
            return write_failure(error)
        except Exception as error:  # one broken job must not take the others with it
            log.exception("a job failed")  # without its id, which opens it where there are no keys
            return write_failure(HybridgeError(f"unexpected {type(error).__name__}; the server's log says more"))

    def _expire_later(self, entry: AsyncJob) -> None:
        left_s = max(0.0, (entry.done_at or 0.0) + self._limits.ttl_s - time.time())
        loop = asyncio.get_running_loop()

        def expire() -> None:
            forgetting = loop.create_task(self._forget_quietly(entry))
            self._forgetting.add(forgetting)  # the loop alone would not keep it alive
            forgetting.add_done_callback(self._forgetting.discard)

        entry.expiry = loop.call_later(left_s, expire)

    async def _forget_quietly(self, entry: AsyncJob) -> None:
        try:
            await self._forget(entry)
        except HybridgeError as error:  # nobody asked, and the next process with this spool tries again
            log_failure(error)

    async def _forget(self, entry: AsyncJob) -> None:
        if self._entries.pop(entry.stored.id, None) is None:
            return
        if entry.expiry is not None:
            entry.expiry.cancel()
        self._backlog.remove(entry)
        if not entry.is_over:
            entry.state = "cancelled"
            self._tell_end(entry, HUNG_UP)
        entry.notify()
        if entry.task is not None:
            entry.task.cancel()
            await asyncio.wait([entry.task])
        await asyncio.to_thread(self._store.remove, entry.stored)

    def _status(self, entry: AsyncJob) -> dict[str, Any]:
        return entry.status(None if entry.done_at is None else self._expires_at(entry.done_at))

    def _expires_at(self, done_at: float) -> float:
        at = done_at + self._limits.ttl_s
        return at if self._ends_at is None or self._store.is_durable else min(at, self._ends_at)
