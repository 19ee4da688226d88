"""Async jobs without a server, for tests that decide when a job ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from hybridge.protocol import HttpResponse
from hybridge.server.async_jobs.registry import AsyncJobLimits, AsyncJobRegistry
from hybridge.server.async_jobs.spool import SpoolStore
from hybridge.server.async_jobs.store import MemoryStore, StoredRequest
from hybridge.server.middleware.request_record import RequestRecord
from hybridge.server.scheduling.job import Progress

#: Of a job that is done.
ANSWER = HttpResponse(200, {"content-type": "text/plain"}, b"answer" * 1000)


class Scene:
    """Async jobs whose answers a test gives, one by one."""

    def __init__(self, store: Any = None, **limits: float) -> None:
        self.ended: list[tuple[str, int]] = []
        tell = [lambda record: self.ended.append((record.request_id, record.status))]
        self.async_jobs = AsyncJobRegistry(store or MemoryStore(), AsyncJobLimits(**limits), tell)  # type: ignore[arg-type]
        self.asked: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.begun = asyncio.Event()

    async def answer(self, asked: Any, body: bytes, hear: Callable[[Progress], None], _: Any) -> HttpResponse:
        self.asked.append(asked.query)
        hear(Progress("running", done=0.5))
        self.begun.set()
        await self.gates.setdefault(asked.query, asyncio.Event()).wait()
        return HttpResponse(200, {"content-type": "text/plain"}, body.upper())

    async def accept(self, query: str = "q", client: str = "address:1", body: bytes = b"body") -> str:
        return await self.async_jobs.accept(
            StoredRequest("", client, query, {}, None, None),
            body,
            result_bytes=len(body),
            record=RequestRecord(query),
        )

    def let_go(self, query: str = "q") -> None:
        self.gates.setdefault(query, asyncio.Event()).set()

    async def fetch(self, job: str, client: str = "address:1") -> tuple[int, bytes]:
        with closing(await self.async_jobs.result(job, client)) as kept:
            return kept.status, kept.stream.read()

    async def over(self, job: str, client: str = "address:1") -> str:
        state = ""
        async for status in self.async_jobs.events(job, client):
            state = state if status is None else status["state"]
        return state


def play(act: Callable[[Scene], Awaitable[None]], **about: Any) -> None:
    async def whole() -> None:
        scene = Scene(**about)
        await scene.async_jobs.open(scene.answer)
        await act(scene)
        await scene.async_jobs.close()

    asyncio.run(whole())


def asked(job: str) -> StoredRequest:
    return StoredRequest(job, "address:1", "q", {}, "decode", None)


def good(folder: Path, job: str = "good", *, is_done: bool = False) -> None:
    with closing(SpoolStore(folder)) as spool:
        spool.keep(asked(job), b"body" * 1000)
        if is_done:
            spool.finish(asked(job), ANSWER)


def found_in(folder: Path) -> dict[str, bool]:
    """The jobs that the next server finds, and whether they are done."""
    with closing(SpoolStore(folder)) as spool:
        return {found.stored.id: found.done_at is not None for found in spool.recover()}
