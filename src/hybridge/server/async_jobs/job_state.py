"""One async job: its state, and who is notified when that changes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

from ...protocol import HttpResponse
from ..middleware.request_record import RequestRecord
from ..scheduling.job import Progress
from .store import StoredRequest


@dataclass(slots=True, eq=False)
class AsyncJob:
    """A job.

    Attributes:
        asked: What is to be done.
        body_bytes: Of the request.
        result_bytes: What the result takes at most, and what it takes once it is there.
        record: Told when the job ends.
        state: Only ``done``, ``failed`` and ``cancelled`` are for good.
        progress: The latest that was heard.
        done_at: In seconds since 1970.
        unkept: Why the result could not be kept, in its place.
        is_due: Its result will be lost with the process, and came too late to be fetched before that was clear.
        task: Does it.
        expiry: Forgets it.
        changed: Set, and replaced by a new event, whenever there is news.
    """

    stored: StoredRequest
    body_bytes: int
    result_bytes: int
    record: RequestRecord
    state: Literal["waiting", "loading", "running", "done", "failed", "cancelled"] = "waiting"
    progress: Progress = field(default_factory=lambda: Progress("waiting"))
    done_at: float | None = None
    unkept: HttpResponse | None = None
    is_due: bool = False
    task: asyncio.Task[None] | None = None
    expiry: asyncio.TimerHandle | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def nbytes(self) -> int:
        """What is kept for it at most."""
        return self.body_bytes + self.result_bytes

    @property
    def is_over(self) -> bool:
        """Whether it will not change any more."""
        return self.state in ("done", "failed", "cancelled")

    def on_progress(self, progress: Progress) -> None:
        """Takes in how far it is."""
        if not self.is_over and progress != self.progress:
            self.state, self.progress = progress.state, progress
            self.notify()

    def notify(self) -> None:
        """Wakes all who wait for news."""
        self.changed.set()
        self.changed = asyncio.Event()

    def status(self, expires_at: float | None) -> dict[str, Any]:
        """How it stands, as its owner is told.

        Args:
            expires_at: Until when its result is kept, in seconds since 1970, if there is one.
        """
        here = f"/v1/jobs/{self.stored.id}"
        status: dict[str, Any] = {"id": self.stored.id, "state": self.state, "made_at": self.stored.made_at}
        if self.state in ("waiting", "loading"):
            status["position"] = self.progress.position
        if not self.is_over:
            progress = self.progress
            status |= {"progress": round(progress.done, 4), "eta_s": progress.eta_s, "events": f"{here}/events"}
        if self.done_at is not None:
            status |= {"result": f"{here}/result", "expires_at": expires_at}
        return status
