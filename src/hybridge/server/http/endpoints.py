"""The handlers of the HTTP API: each turns a request into a job, and the result into a response.

Nothing here touches torch.  What takes more than a millisecond of a processor (base64, picture files) runs in
worker threads, so that neither the event loop nor the device waits for it.  Raw tensors are not copied; they are
read and written on the event loop, because handing them to a thread and back takes longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ... import __version__, protocol
from ...errors import ClientGone
from ...models import ModelSpec, TextSpec
from ..async_jobs.registry import AsyncJobRegistry
from ..async_jobs.store import StoredRequest
from ..middleware.request_record import RequestRecord, record_of
from ..process.metrics import CONTENT_TYPE, Metrics
from ..scheduling.backend import Backend
from ..scheduling.job import Job, ProgressCallback, text_part
from ..scheduling.limits import Limits
from .job_kind import JobKind, ResponseTools, SentRequest, written
from .media_threads import MediaThreads
from .request_body import BodyReader
from .request_deadline import Deadline
from .request_headers import client_of, prefers_async, query_of, timeout_of
from .response_headers import about_job, about_run
from .served_models import ServedModels

Answered = TypeVar("Answered")


class Endpoints:
    """The handlers, around one backend.

    Args:
        backend: Runs the jobs.
        served: The models of the backend.
        kinds: The kinds of job; the first that recognises a request reads it.
        body_reader: Reads request bodies.
        metrics: The metrics of ``/metrics``.
        async_jobs: Takes requests that are to be done later.
        media: Threads for picture files and base64.
        limits: Limits of one request, which ``/v1/models`` tells.
        deadline_s: Time limit of requests that name none, in seconds; None for no limit.
    """

    def __init__(
        self,
        backend: Backend,
        served: ServedModels,
        kinds: Sequence[JobKind[Any]],
        body_reader: BodyReader,
        metrics: Metrics,
        async_jobs: AsyncJobRegistry,
        media: MediaThreads,
        *,
        limits: Limits,
        deadline_s: float | None = None,
    ) -> None:
        self._backend = backend
        self._served = served
        self._kinds = kinds
        self._body_reader = body_reader
        self._metrics = metrics
        self._async_jobs = async_jobs
        self._deadline_s = deadline_s
        self._limits = limits
        self._media = media
        self._fingerprinting = asyncio.Lock()  # reading weights side by side would be no faster

    # ------------------------------------------------------------------------------------------- work

    async def decode(self, request: Request) -> Response:
        """POST /v1/{model}/decode"""
        return await self.answer(request, "decode")

    async def encode(self, request: Request) -> Response:
        """POST /v1/{model}/encode"""
        return await self.answer(request, "encode")

    async def prompt(self, request: Request) -> Response:
        """POST /v1/{model}/prompt"""
        return await self.answer(request, "prompt")

    async def infer(self, request: Request) -> Response:
        """POST / and /predict: task and model follow from what was sent."""
        return await self.answer(request, None)

    async def sd_next(self, request: Request) -> Response:
        """POST /te: SD.Next's remote T5."""
        return await self.answer(request, "prompt")

    async def answer(self, request: Request, task: protocol.Task | None, model: str | None = None) -> Response:
        """Return the response to a request for a job.

        Args:
            request: The request.
            task: The task; None if it follows from what was sent.
            model: The model where the path does not name it; None if it is to be inferred.

        Raises:
            HybridgeError: when the request is wrong, or the job fails.
        """
        arrived = time.perf_counter()
        named = request.path_params.get("model", model)
        spec = self.spec_of(named, task) if named else None
        record = record_of(request.scope)
        record.model, record.task = spec.name if spec else "", task or ""
        deadline = self.deadline_of(request)
        with deadline.bound():
            read = await self._receive(request, task, spec)
        if isinstance(read, Response):
            return read
        return await self.finish(request, *read, arrived, record, deadline)

    async def finish(
        self,
        request: Request,
        kind: JobKind[Any],
        job: Job[Any],
        arrived: float,
        record: RequestRecord,
        deadline: Deadline,
    ) -> Response:
        """Return the response to the job of a request, or one that is sent while it runs.

        Args:
            request: The request.
            kind: The kind of the job.
            job: The job.
            arrived: When the request came, in seconds of ``time.perf_counter``.
            record: The record of the request.
            deadline: The time limit.

        Raises:
            HybridgeError: when the job fails, is not done in time, or the client leaves.
        """
        job = replace(job, client=client_of(request))
        streamed = kind.stream(job, ResponseTools(self._backend, self._media.run, record, deadline))
        if streamed is not None:
            record.milliseconds["read"] = 1e3 * (time.perf_counter() - arrived)
            return await while_connected(request, streamed)
        response = await while_connected(request, self.respond(job, arrived, record, deadline))
        return Response(response.body, response.status, response.headers)

    async def _receive(
        self, request: Request, task: protocol.Task | None, spec: ModelSpec | TextSpec | None
    ) -> tuple[JobKind[Any], Job[Any]] | Response:
        """Return the job of a request and its kind, or the answer to a request that is to be done later.

        The body is released here: a job that waits for the device holds its tensor, but not the base64 beside it.
        """
        record = record_of(request.scope)
        headers = {name: ", ".join(request.headers.getlist(name)) for name in ("content-type", "accept")}
        async with self._body_reader.body(request) as body:
            kind, sent = self._recognised(SentRequest(query_of(request), headers, body, task, spec))
            reading = self._read(kind, sent)
            job = await (reading if kind.is_quick_to_read(sent) else while_connected(request, reading))
            _note(record, job)
            if not prefers_async(request):
                return kind, job
            client = client_of(request)
            model = sent.spec.name if sent.spec else None
            job_id = await self._async_jobs.accept(
                StoredRequest("", client, sent.query, sent.headers, sent.task, model),
                sent.body,
                result_bytes=job.result_bytes,
                record=record,
            )
            return accepted(self._async_jobs.status(job_id, client))

    async def answer_later(
        self, stored: StoredRequest, body: bytes, on_progress: ProgressCallback, record: RequestRecord
    ) -> protocol.HttpResponse:
        """Return the response to a request that was accepted for later, as if it had been answered at once.

        ``record`` is that of the job; the record of the request ended when it was accepted.

        Raises:
            HybridgeError: when the job fails.
        """
        arrived = time.perf_counter()
        job = await self._read_stored(stored, body)
        job = replace(job, client=stored.client, is_patient=True)
        _note(record, job)
        return await self.respond(job, arrived, record, Deadline(None), on_progress)

    async def result_bytes(self, stored: StoredRequest, body: bytes, record: RequestRecord) -> int:
        """Return the most bytes that the result of a stored request can take, and fill in its record.

        Raises:
            HybridgeError: when the request is wrong.
        """
        job = await self._read_stored(stored, body)
        _note(record, job)
        return job.result_bytes

    def deadline_of(self, request: Request) -> Deadline:
        """Return the time limit of a request.

        Raises:
            RequestError: when its header cannot be read.
        """
        return Deadline(timeout_of(request, self._deadline_s))

    async def respond(
        self,
        job: Job[Any],
        arrived: float,
        record: RequestRecord,
        deadline: Deadline,
        on_progress: ProgressCallback | None = None,
    ) -> protocol.HttpResponse:
        """Run a job and return its response.

        Args:
            job: The job.
            arrived: When its request came, in seconds of ``time.perf_counter``.
            record: The record of the request.
            deadline: The time limit.
            on_progress: Told of the progress.

        Raises:
            HybridgeError: when it fails, or is not done in time.
        """
        read = time.perf_counter()
        with deadline.bound():
            result = await self._backend.run(job, on_progress)
            computed = time.perf_counter()
            response = await written(job, result, self._media.run)
        encode_ms = result.milliseconds.get("encode", 0.0) + 1e3 * (time.perf_counter() - computed)
        stages = {"read": 1e3 * (read - arrived), **result.milliseconds, "encode": encode_ms}
        record.milliseconds.update(stages)
        record.shared_by = result.shared_by
        record.cache = result.cache or record.cache
        about = {**about_job(job), **about_run(result, stages)}
        return protocol.HttpResponse(response.status, {**response.headers, **about}, response.body)

    def _recognised(self, sent: SentRequest) -> tuple[JobKind[Any], SentRequest]:
        """What kind of job a request asks for, and the request in our own format."""
        found = ((kind, kind.recognise(sent)) for kind in self._kinds)
        return next((kind, ours) for kind, ours in found if ours is not None)

    def job_of(self, sent: SentRequest) -> tuple[JobKind[Any], Job[Any]]:
        """Return the job that a request asks for, and its kind; takes as long as its base64 or its picture.

        Raises:
            HybridgeError: when the request is wrong.
        """
        kind, ours = self._recognised(sent)
        return kind, kind.read(ours)

    async def _read(self, kind: JobKind[Any], sent: SentRequest) -> Job[Any]:
        return kind.read(sent) if kind.is_quick_to_read(sent) else await self._media.run(kind.read, sent)

    async def _read_stored(self, stored: StoredRequest, body: bytes) -> Job[Any]:
        spec = self.spec_of(stored.model, stored.task) if stored.model else None
        sent = SentRequest(stored.query, stored.headers, body, stored.task, spec)
        return await self._read(*self._recognised(sent))

    # ------------------------------------------------------------------------------------ information

    async def index(self, _: Request) -> Response:
        """GET /"""
        return JSONResponse(
            {
                "name": "hybridge",
                "version": __version__,
                "models": self._served.names,
                "documentation": "/openapi.json",
            }
        )

    async def models(self, _: Request) -> Response:
        """GET /v1/models"""
        infos = self._backend.info()
        models = [self._served.described(name, infos) for name in self._served.names]
        return JSONResponse({"models": models, "limits": self._limits.described()})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{model}: with what tells its weights from others, which takes a while to find."""
        name = self._served.find(request.path_params["model"]).name
        document = self._served.described(name, self._backend.info())
        async with self._fingerprinting:
            if "decode" in document:
                document |= await asyncio.to_thread(self._backend.fingerprint, name)
            if "text" in document:
                document["text"] |= await asyncio.to_thread(self._backend.fingerprint, text_part(name))
        return JSONResponse(document)

    async def health(self, _: Request) -> Response:
        """GET /health: 200 while the process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """GET /ready: 200 while jobs are accepted."""
        reason, replicas = self._backend.health(), self._backend.load().replicas
        told = {"replicas": {name: one.failure or "ready" for name, one in replicas.items()}} if replicas else {}
        if reason is None:
            return JSONResponse({"status": "ready", **told})
        return JSONResponse({"status": "not ready", "error": reason, **told}, 503)

    async def metrics(self, _: Request) -> Response:
        """GET /metrics, for Prometheus."""
        return Response(self._metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    def spec_of(self, name: str, task: protocol.Task | None) -> ModelSpec | TextSpec:
        """Return the part of a model for a task.

        Raises:
            UnknownModel: when there is no such model.
            RequestError: when it has no such part.
        """
        return self._served.text(name) if task == "prompt" else self._served.vae(name)


async def while_connected(request: Request, work: Coroutine[Any, Any, Answered]) -> Answered:
    """Return the result of ``work``; cancel it, and so take its job off the queue, if the client leaves first.

    Raises:
        ClientGone: when the client leaves.
    """
    working = asyncio.ensure_future(work)
    # Once the body is read, the next message says that the client is gone.
    leaving = asyncio.ensure_future(request.receive())
    leaving.add_done_callback(lambda _: working.cancel())
    try:
        return await working
    except asyncio.CancelledError:
        if not leaving.done():
            raise
        raise ClientGone("the client closed the connection") from None
    finally:
        leaving.cancel()


def accepted(status: dict[str, Any]) -> Response:
    """Return the answer to a request that was accepted for later."""
    here = f"/v1/jobs/{status['id']}"
    return JSONResponse(status, 202, {"location": here, "preference-applied": "respond-async"})


def _note(record: RequestRecord, job: Job[Any]) -> None:
    record.model, record.task = job.spec.name, job.task
    record.pictures = job.batch
