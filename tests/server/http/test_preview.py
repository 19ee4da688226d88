"""A preview whose picture is not there in time."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import pytest

from hybridge.engine import Engine
from hybridge.errors import DeadlinePassed
from hybridge.protocol import DecodeRequest, WireTensor
from hybridge.server.http.job_kind import ResponseTools
from hybridge.server.http.preview import answer_with_preview
from hybridge.server.http.request_deadline import Deadline
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.request_record import RequestRecord
from hybridge.server.scheduling.limits import PictureSize
from hybridge.server.scheduling.vae_job import VaeJob

WAIT_S = 60


class HeldEngine:
    """An engine that holds every decode until it is let go."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.go = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def decode(self, *given: Any, **named: Any) -> Any:
        assert self.go.wait(WAIT_S)
        return self._engine.decode(*given, **named)


@pytest.mark.parametrize("passes", ["before", "while waiting"])
def test_a_deadline_that_passes_after_the_preview(engines: dict[str, Engine], passes: str) -> None:
    """The preview was sent; the other part says 504."""
    engine = HeldEngine(engines["sd-v1"])
    backend = LocalBackend({"sd-v1": engine})  # type: ignore[dict-item]
    latents = WireTensor("float32", (1, 4, 8, 8), bytes(1024))
    job = VaeJob(engines["sd-v1"].spec, DecodeRequest(latents, preview=True), PictureSize(1, 64, 64))
    record = RequestRecord("one")

    async def scene() -> None:
        deadline = Deadline(WAIT_S)
        tools = ResponseTools(backend, asyncio.to_thread, record, deadline)
        response = await answer_with_preview(job, {}, tools)
        parts: Any = response.body_iterator  # type: ignore[attr-defined]
        assert b"hybridge-preview: latent-rgb" in await anext(parts)
        deadline._ends = anyio.current_time() + (0.01 if passes == "while waiting" else -1)
        picture = await anext(parts)
        assert b"hybridge-status: 504" in picture
        assert DeadlinePassed.__name__.encode() in picture
        assert [part async for part in parts]  # the end
        engine.go.set()

    try:
        asyncio.run(scene())
    finally:
        engine.go.set()
        backend.close()
    assert record.status == 504
