"""What a kind of job needs to be asked for over HTTP; the endpoints know all kinds by this class alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.responses import Response

from ...models import ModelSpec, TextSpec
from ...protocol import HttpResponse, Task
from ..middleware.request_record import RequestRecord
from ..scheduling.backend import Backend
from ..scheduling.job import Job, Result
from .request_deadline import Deadline

JobT = TypeVar("JobT", bound=Job[Any])

#: A query that takes less time to read than the way to a thread and back; diffusers' have about 150 characters.
SHORT_QUERY = 1024

#: Calls a function in a worker thread: (function, arguments…) → its result.
InWorker = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class SentRequest:
    """The parts of a request that its job is made from; see :class:`StoredRequest`.

    Attributes:
        query: The raw query string.
        headers: ``content-type`` and ``accept``.
        body: The whole body.
        task: The task that the path names; None if it names none.
        spec: The model that the path names; None if it names none.
    """

    query: str
    headers: dict[str, str]
    body: bytes
    task: Task | None
    spec: ModelSpec | TextSpec | None


@dataclass(frozen=True, slots=True)
class ResponseTools:
    """What is needed to send a response while its job runs.

    Attributes:
        backend: Runs jobs.
        in_worker: Runs functions that take more than a millisecond of a processor.
        record: The record of the request.
        deadline: The deadline of the request.
    """

    backend: Backend
    in_worker: InWorker
    record: RequestRecord
    deadline: Deadline


class JobKind(ABC, Generic[JobT]):
    """One kind of job: which requests ask for it, how they are read, and how its answer is sent."""

    @abstractmethod
    def recognise(self, sent: SentRequest) -> SentRequest | None:
        """The request if it asks for this kind of job, else None.

        A request in the format of another server is returned in our own, with its task and model.
        """

    @abstractmethod
    def is_quick_to_read(self, sent: SentRequest) -> bool:
        """Whether :meth:`read` takes less time than the way to a thread and back."""

    @abstractmethod
    def read(self, sent: SentRequest) -> JobT:
        """The job that a recognised request asks for, once it is checked against the limits.

        Raises:
            HybridgeError: when it cannot be done.
        """

    def stream(self, job: JobT, tools: ResponseTools) -> Coroutine[Any, Any, Response] | None:
        """The response to a job whose answer is sent while it runs; None for an answer sent at its end."""
        return None


async def written(job: Job[Any], result: Result, in_worker: InWorker) -> HttpResponse:
    """Return the response of a job; it is written here unless whoever ran the job has done so."""
    if result.written is not None:
        return result.written
    if job.is_quick_to_write(result):
        return job.write(result)
    response: HttpResponse = await in_worker(job.write, result)
    return response
