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
        stored: The request.
        body_bytes: Bytes of its body.
        result_bytes: Most bytes of the result, and its real size once it exists.
        record: The record that the observers get when the job ends.
        state: ``done``, ``failed`` and ``cancelled`` are final.
        progress: The latest progress.
        done_at: When it was done, in seconds since 1970.
        unkept: The error response in place of a result that could not be stored.
        is_due: Whether the result was made after the shutdown began and would be lost if it is not fetched.
        task: The task that runs it.
        expiry: The timer that deletes it.
        changed: An event that is set, and replaced by a new one, at every change.
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
        """Most bytes that are stored for it."""
        return self.body_bytes + self.result_bytes

    @property
    def is_over(self) -> bool:
        """Whether its state is final."""
        return self.state in ("done", "failed", "cancelled")

    def on_progress(self, progress: Progress) -> None:
        """Store its progress."""
        if not self.is_over and progress != self.progress:
            self.state, self.progress = progress.state, progress
            self.notify()

    def notify(self) -> None:
        """Wake all tasks that wait for a change."""
        self.changed.set()
        self.changed = asyncio.Event()

    def status(self, expires_at: float | None) -> dict[str, Any]:
        """Return its status for its client.

        Args:
            expires_at: When its result expires, in seconds since 1970; None without a result.
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
