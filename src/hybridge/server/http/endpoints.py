"""HTTP in, HTTP out: each handler turns a request into a job and a result into a response.

Nothing here touches torch.  What takes a processor for more than a moment (base64, picture files) runs in worker
threads, so that neither the event loop nor the device waits for it.  Tensors as bytes are neither copied nor looked
into, and are read and written where they are: the way to a thread and back takes longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ... import __version__, protocol
from ...errors import ClientGone
from ...models import ModelSpec, TextSpec
from ...protocol import DecodeRequest
from ...protocol.prompt_wires import from_flux2, from_sd_next
from ..async_jobs.registry import AsyncJobRegistry
from ..async_jobs.store import StoredRequest
from ..middleware.request_record import RequestRecord, record_of
from ..process.metrics import CONTENT_TYPE, Metrics
from ..scheduling.backend import Backend
from ..scheduling.job import (
    AnyJob,
    AnyResult,
    Job,
    ProgressCallback,
    PromptJob,
    PromptResult,
    Result,
    admit,
    finish,
    infer_model,
)
from ..scheduling.limits import Limits
from ..scheduling.prompt_job import admit_prompt, finish_prompt
from .media_threads import MediaThreads
from .preview import answer_with_preview
from .request_body import BodyReader
from .request_deadline import Deadline
from .request_headers import client_of, prefers_async, query_of, result_bytes, timeout_of
from .response_headers import about_job, about_run
from .served_models import ServedModels

Answered = TypeVar("Answered")

#: A query that takes less to read than the way to a thread and back; diffusers' have about 150 characters.
_SHORT_QUERY = 1024

#: JSON of which the same is true, and embeddings that are written in a millisecond.
_SHORT_BODY = 16 * 1024
_SHORT_ANSWER = 8 * 2**20


@dataclass(frozen=True, slots=True)
class _Sent:
    """What of a request its job is made from; see :class:`StoredRequest`."""

    query: str
    headers: dict[str, str]
    body: bytes
    task: protocol.Task | None
    spec: ModelSpec | TextSpec | None


class Endpoints:
    """The handlers, around one backend.

    Args:
        backend: Runs the jobs.
        limits: What may be asked for.
        body_reader: Reads the bodies.
        metrics: What ``/metrics`` shows.
        async_jobs: Takes what shall be done later.
        deadline_s: Seconds after which a request that names none is given up; None for never.
        default_model: Taken where a request names no model and several fit.
        media: Threads for picture files and base64.
    """

    def __init__(
        self,
        backend: Backend,
        limits: Limits,
        body_reader: BodyReader,
        metrics: Metrics,
        async_jobs: AsyncJobRegistry,
        media: MediaThreads,
        *,
        deadline_s: float | None = None,
        default_model: str | None = None,
    ) -> None:
        self._backend = backend
        self._limits = limits
        self._body_reader = body_reader
        self._metrics = metrics
        self._async_jobs = async_jobs
        self._deadline_s = deadline_s
        self._default_model = default_model
        self._served = ServedModels(backend.info())
        self._media = media

    # ------------------------------------------------------------------------------------------- work

    async def decode(self, request: Request) -> Response:
        """POST /v1/{model}/decode"""
        return await self._answer(request, "decode")

    async def encode(self, request: Request) -> Response:
        """POST /v1/{model}/encode"""
        return await self._answer(request, "encode")

    async def prompt(self, request: Request) -> Response:
        """POST /v1/{model}/prompt"""
        return await self._answer(request, "prompt")

    async def infer(self, request: Request) -> Response:
        """POST / and /predict: task and model follow from what was sent."""
        return await self._answer(request, None)

    async def sd_next(self, request: Request) -> Response:
        """POST /te: SD.Next's remote T5."""
        return await self._answer(request, "prompt")

    async def _answer(self, request: Request, task: protocol.Task | None) -> Response:
        arrived = time.perf_counter()
        named = request.path_params.get("model")
        spec = self._spec_of(named, task) if named else None
        record = record_of(request.scope)
        record.model, record.task = spec.name if spec else "", task or ""
        deadline = Deadline(timeout_of(request, self._deadline_s))
        with deadline.bound():
            read = await self._receive(request, task, spec)
        if isinstance(read, Response):
            return read
        job, inferred = read
        job = replace(job, client=client_of(request))
        if isinstance(job.request, DecodeRequest) and job.request.preview:
            infos = [info for info in self._backend.info() if info.state == "loaded"]
            loaded = {info.spec.name: info.spec for info in infos if isinstance(info.spec, ModelSpec)}
            record.milliseconds["read"] = 1e3 * (time.perf_counter() - arrived)
            previewed = answer_with_preview(self._backend, job, loaded, self._media.run, inferred, record, deadline)
            return await _while_connected(request, previewed)
        response = await _while_connected(request, self._respond(job, inferred, arrived, record, deadline))
        return Response(response.body, response.status, response.headers)

    async def _receive(
        self, request: Request, task: protocol.Task | None, spec: ModelSpec | TextSpec | None
    ) -> tuple[AnyJob, str | None] | Response:
        """The job that a request asks for, or the answer to one that is to be done later.

        The body ends here: whoever waits for the device holds what was read from it, and no base64 besides.
        """
        record = record_of(request.scope)
        headers = {name: ", ".join(request.headers.getlist(name)) for name in ("content-type", "accept")}
        async with self._body_reader.body(request) as body:
            sent = self._recognised(_Sent(query_of(request), headers, body, task, spec))
            reading = self._read(sent)
            job, inferred = await (reading if _is_quick(sent) else _while_connected(request, reading))
            _note(record, job)
            if not prefers_async(request):
                return job, inferred
            client = client_of(request)
            model = sent.spec.name if sent.spec else None
            job_id = await self._async_jobs.accept(
                StoredRequest("", client, sent.query, sent.headers, sent.task, model),
                sent.body,
                result_bytes=result_bytes(job),
                record=record,
            )
            return accepted(self._async_jobs.status(job_id, client))

    async def answer_later(
        self, stored: StoredRequest, body: bytes, on_progress: ProgressCallback, record: RequestRecord
    ) -> protocol.HttpResponse:
        """The response to a request that was accepted for later: the one that it would have had at once.

        ``record`` is the job's own: that of the request ended when it was accepted.

        Raises:
            HybridgeError: in place of it.
        """
        arrived = time.perf_counter()
        spec = self._spec_of(stored.model, stored.task) if stored.model else None
        job, inferred = await self._read(_Sent(stored.query, stored.headers, body, stored.task, spec))
        job = replace(job, client=stored.client, is_patient=True)
        _note(record, job)
        return await self._respond(job, inferred, arrived, record, Deadline(None), on_progress)

    async def result_bytes(self, stored: StoredRequest, body: bytes, record: RequestRecord) -> int:
        """What the result of a request that is accepted for later takes at most; its record learns what it is.

        Raises:
            HybridgeError: when it cannot be answered as it stands.
        """
        spec = self._spec_of(stored.model, stored.task) if stored.model else None
        job, _ = await self._read(_Sent(stored.query, stored.headers, body, stored.task, spec))
        _note(record, job)
        return result_bytes(job)

    async def _respond(
        self,
        job: AnyJob,
        inferred: str | None,
        arrived: float,
        record: RequestRecord,
        deadline: Deadline,
        on_progress: ProgressCallback | None = None,
    ) -> protocol.HttpResponse:
        read = time.perf_counter()
        with deadline.bound():
            result = await self._backend.run(job, on_progress)
            computed = time.perf_counter()
            response = await self._write(job, result)
        stages = {
            "read": 1e3 * (read - arrived),
            **result.milliseconds,
            "encode": 1e3 * (time.perf_counter() - computed),
        }
        record.milliseconds.update(stages)
        record.shared_by = result.shared_by
        if isinstance(result, PromptResult):
            record.cache = "hit" if result.is_from_cache else "miss"
        about = {**about_job(job, inferred), **about_run(result, stages)}
        return protocol.HttpResponse(response.status, {**response.headers, **about}, response.body)

    def _recognised(self, sent: _Sent) -> _Sent:
        """The request; those of other wires for prompts as one of ours."""
        limits = self._limits.prompts
        if sent.task == "prompt" and sent.spec is None:
            base, (query, body) = "Flux", from_sd_next(sent.query, sent.body, limits)
        elif sent.task is None:
            found = from_flux2(sent.query, sent.headers["content-type"], sent.body, limits)
            if found is None:
                return sent
            base, (query, body) = "Flux2", found
        else:
            return sent
        spec = self._served.text_of(base, self._default_model)
        return _Sent(query, {"content-type": "application/json", "accept": ""}, body, "prompt", spec)

    async def _read(self, sent: _Sent) -> tuple[AnyJob, str | None]:
        """The job, and how its model was found if it was not named."""
        if _is_quick(sent):
            return self._read_here(sent)
        return await self._media.run(self._read_here, sent)

    async def _write(self, job: AnyJob, result: AnyResult) -> protocol.HttpResponse:
        if isinstance(job, PromptJob) and isinstance(result, PromptResult):
            is_short = result.answer.nbytes <= _SHORT_ANSWER and job.request.envelope == "safetensors"
            if is_short and job.request.dtype is None:
                return finish_prompt(job, result)
            return await self._media.run(finish_prompt, job, result)
        if not (isinstance(job, Job) and isinstance(result, Result)):
            raise AssertionError("a job of one kind has a result of another")
        request = job.request
        is_file = isinstance(request, DecodeRequest) and request.output in ("picture", "video")
        if request.envelope == "binary" and not is_file:
            return _write_here(job, result)
        return await self._media.run(_write_here, job, result)

    def _read_here(self, sent: _Sent) -> tuple[AnyJob, str | None]:
        if isinstance(sent.spec, TextSpec):
            prompts = protocol.read_prompt_request(sent.query, sent.headers, sent.body, self._limits.prompts)
            return admit_prompt(prompts, sent.spec, self._limits), None
        request = protocol.read_request(sent.query, sent.headers, sent.body, sent.task)
        spec, inferred = sent.spec, None
        if spec is None:
            spec, reason = infer_model(request, self._served.vaes, self._default_model)
            done = "decode" if isinstance(request, DecodeRequest) else "encode"
            inferred = f"model={spec.name}; task={done}; reason={reason}"
        return admit(request, spec, self._limits), inferred

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
        return JSONResponse({"models": [self._served.described(name, infos) for name in self._served.names]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{model}"""
        name = self._served.find(request.path_params["model"]).name
        return JSONResponse(self._served.described(name, self._backend.info()))

    async def health(self, _: Request) -> Response:
        """GET /health: the process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """GET /ready: work is taken."""
        reason = self._backend.health()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "error": reason}, 503)

    async def metrics(self, _: Request) -> Response:
        """GET /metrics, for Prometheus."""
        return Response(self._metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    def _spec_of(self, name: str, task: protocol.Task | None) -> ModelSpec | TextSpec:
        return self._served.text(name) if task == "prompt" else self._served.vae(name)


def _is_quick(sent: _Sent) -> bool:
    """Whether it is read where it is, on the event loop."""
    content_type = sent.headers.get("content-type", "")
    is_short_text = (
        isinstance(sent.spec, TextSpec) and len(sent.body) <= _SHORT_BODY and "/form" not in content_type
    )
    return len(sent.query) <= _SHORT_QUERY and (is_short_text or protocol.is_raw_tensor(content_type))


async def _while_connected(request: Request, work: Coroutine[Any, Any, Answered]) -> Answered:
    """The work's result; if the client leaves first, the work is cancelled and gives up its place in the queue."""
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


def _write_here(job: Job, result: Result) -> protocol.HttpResponse:
    return protocol.write_answer(finish(job, result))


def accepted(status: dict[str, Any]) -> Response:
    """The answer to a request that is done later."""
    here = f"/v1/jobs/{status['id']}"
    return JSONResponse(status, 202, {"location": here, "preference-applied": "respond-async"})


def _note(record: RequestRecord, job: AnyJob) -> None:
    record.model, record.task = job.spec.name, job.task
    record.pictures = job.request.batch if isinstance(job, PromptJob) else job.size.batch
