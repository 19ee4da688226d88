"""The two routes of a cloud: one that asks whether the server can work, and one for requests of all kinds.

A cloud passes on the body, its type and Accept, and little else.  So the parameters may be in the body (JSON), in
the query, or in SageMaker's header for attributes; and ``model`` and ``task`` are parameters here, because there is
only one path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...errors import AmbiguousModel, RequestError, TooLarge
from ...protocol import HttpResponse, Task, read_query
from ...protocol.instances import Instance, read_instances, write_predictions
from ..cloud import Cloud
from ..middleware.request_record import RequestRecord, record_of
from ..scheduling.job import Job
from ..scheduling.limits import Limits
from .endpoints import Endpoints, while_connected
from .job_kind import JobKind, SentRequest
from .media_threads import MediaThreads
from .request_body import BodyReader
from .request_deadline import Deadline
from .request_headers import client_of, query_of
from .served_models import ServedModels

#: SageMaker passes it on in both directions, at most 1024 characters of ASCII.
ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
_MAX_ATTRIBUTES = 1024

_TASKS = ("decode", "encode", "prompt")


class CloudRoutes:
    """The handlers.

    Args:
        cloud: The conventions of the cloud.
        endpoints: Answers requests.
        served: The models of this server.
        body_reader: Reads request bodies.
        media: Threads for base64.
        limits: Of one body, with all its requests.
    """

    def __init__(
        self,
        cloud: Cloud,
        endpoints: Endpoints,
        served: ServedModels,
        body_reader: BodyReader,
        media: MediaThreads,
        limits: Limits,
    ) -> None:
        self._cloud = cloud
        self._endpoints = endpoints
        self._served = served
        self._body_reader = body_reader
        self._media = media
        self._most_instances = limits.max_batch
        self._most_bytes = limits.max_body_bytes

    def routes(self) -> list[Route]:
        """Return the routes of the handlers."""
        return [
            Route(self._cloud.health_path, self._endpoints.ready, methods=["GET"]),
            Route(self._cloud.predict_path, self.predict, methods=["POST"]),
        ]

    async def predict(self, request: Request) -> Response:
        """POST: a request in any form that ``POST /`` reads, or several in JSON."""
        query, model, task = _parameters_of(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
            response = await self._answer_json(request, query, model, task)
        else:
            scope = {**request.scope, "query_string": query.encode("latin-1")}
            response = await self._endpoints.answer(Request(scope, request.receive), task, model)
        attributes = _attributes_of(response)
        if ATTRIBUTES in request.headers and attributes:
            response.headers[ATTRIBUTES] = attributes
        return response

    async def _answer_json(self, request: Request, query: str, model: str | None, task: Task | None) -> Response:
        arrived = time.perf_counter()
        record, deadline = record_of(request.scope), self._endpoints.deadline_of(request)
        with deadline.bound():
            async with self._body_reader.body(request) as body:
                reading = self._media.run(self._read, body, query, request.headers.get("accept", ""), model, task)
                are_several, kinds, jobs = await while_connected(request, reading)
        record.model, record.task = jobs[0].spec.name, jobs[0].task
        record.pictures = sum(job.batch for job in jobs)
        if not are_several:
            return await self._endpoints.finish(request, kinds[0], jobs[0], arrived, record, deadline)
        self._check_answers(jobs)
        jobs = [replace(job, client=client_of(request)) for job in jobs]
        responses = await while_connected(request, self._respond(jobs, arrived, record, deadline))
        whole = await self._media.run(write_predictions, responses)
        return Response(whole.body, whole.status, whole.headers)

    def _read(
        self, body: bytes, query: str, accept: str, model: str | None, task: Task | None
    ) -> tuple[bool, list[JobKind[Any]], list[Job[Any]]]:
        """Return whether the body has several requests, and their kinds and jobs.  Runs in a worker thread."""
        instances = read_instances(body, self._most_instances)
        if instances is not None and query:
            raise RequestError("parameters of instances are in the body", saw=query[:60], expected="no others")
        if instances is None:
            found = [self._job_of(Instance(body, model, task), query, accept)]
        else:
            found = [self._job_of(instance, "", "") for instance in instances]
        return instances is not None, [kind for kind, _ in found], [job for _, job in found]

    def _check_answers(self, jobs: Sequence[Job[Any]]) -> None:
        result_bytes = sum(job.result_bytes for job in jobs)
        if result_bytes > self._most_bytes:
            raise TooLarge(
                "the answer to all instances would be too large",
                saw=f"{result_bytes} bytes",
                expected=f"at most {self._most_bytes}",
                hint="several requests",
            )

    def _job_of(self, instance: Instance, query: str, accept: str) -> tuple[JobKind[Any], Job[Any]]:
        name = instance.model
        if name is None and instance.task == "prompt":
            name = self._only_text()
        spec = None if name is None else self._endpoints.spec_of(name, instance.task)
        headers = {"content-type": "application/json", "accept": accept}
        return self._endpoints.job_of(SentRequest(query, headers, instance.body, instance.task, spec))

    def _only_text(self) -> str:
        texts = list(self._served.texts)
        if len(texts) > 1:
            raise AmbiguousModel(
                "several models here have text encoders", saw=", ".join(texts), expected="one", hint="`model`"
            )
        # Without any, an error that says so.
        return texts[0] if texts else self._served.names[0]

    async def _respond(
        self, jobs: Sequence[Job[Any]], arrived: float, record: RequestRecord, deadline: Deadline
    ) -> list[HttpResponse]:
        """Return the responses to all; if one fails, the others are given up."""
        tasks = [asyncio.ensure_future(self._endpoints.respond(job, arrived, record, deadline)) for job in jobs]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()


def _parameters_of(request: Request) -> tuple[str, str | None, Task | None]:
    """Return the query with the attributes in it, without the model and the task, and these two.

    Raises:
        RequestError: when they cannot be read, or the task is none.
    """
    attributes = request.headers.get(ATTRIBUTES, "")
    if len(attributes) > _MAX_ATTRIBUTES:
        raise RequestError(
            f"{ATTRIBUTES} is too long", saw=len(attributes), expected=f"{_MAX_ATTRIBUTES} characters"
        )
    pairs = read_query("&".join(filter(None, (query_of(request), attributes))))
    named = {name: value for name, value in pairs if name in ("model", "task")}
    task = named.get("task") or None
    if task is not None and task not in _TASKS:
        raise RequestError("no such task", saw=repr(task[:40]), expected=", ".join(_TASKS))
    query = urlencode([pair for pair in pairs if pair[0] not in named])
    return query, named.get("model") or None, cast("Task | None", task)


def _attributes_of(response: Response) -> str:
    """Return the headers that describe an answer in the form of a query."""
    names = ("shape", "dtype", "hybridge-model", "hybridge-warning")
    found = urlencode({name: response.headers[name] for name in names if name in response.headers})
    return found if len(found) <= _MAX_ATTRIBUTES else ""
