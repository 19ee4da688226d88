"""HTTP in, HTTP out: each handler turns a request into a job and a result into a response.

Nothing here touches torch.  What takes a processor for more than a moment (base64, picture files) runs in worker
threads, so that neither the event loop nor the device waits for it.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from anyio import fail_after
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from .. import __version__, protocol
from ..errors import HybridgeError, RequestError, TooSlow, UnknownModel
from ..models import CATALOGUE, ModelSpec
from ..protocol import DecodeRequest
from .backend import Backend, ModelInfo
from .jobs import Job, Result, admit, finish, infer_model
from .limits import Limits
from .preview import answer_with_preview

log = logging.getLogger("hybridge.access")

#: Seconds without a byte after which a sender is given up.
_BODY_PAUSE_S = 30


class Endpoints:
    """The handlers, around one backend.

    Args:
        backend: Runs the jobs.
        limits: What may be asked for.
        default_model: Taken where a request names no model and several fit.
        workers: Threads for picture files and base64.
    """

    def __init__(
        self, backend: Backend, limits: Limits, *, default_model: str | None = None, workers: int = 4
    ) -> None:
        self._backend = backend
        self._limits = limits
        self._default_model = default_model
        self._served = {info.spec.name: info.spec for info in backend.info()}
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="hybridge-media")

    def close(self) -> None:
        """Ends the worker threads."""
        self._workers.shutdown(wait=True)

    # ------------------------------------------------------------------------------------------- work

    async def decode(self, request: Request) -> Response:
        """POST /v1/{model}/decode"""
        return await self._answer(request, "decode")

    async def encode(self, request: Request) -> Response:
        """POST /v1/{model}/encode"""
        return await self._answer(request, "encode")

    async def infer(self, request: Request) -> Response:
        """POST / and /predict: task and model follow from what was sent."""
        return await self._answer(request, None)

    async def _answer(self, request: Request, task: protocol.Task | None) -> Response:
        arrived = time.perf_counter()
        named = request.path_params.get("model")
        spec = self._find(named) if named else None
        body = await self._read_body(request)
        headers = {name: ", ".join(request.headers.getlist(name)) for name in ("content-type", "accept")}
        job, inferred = await self._in_worker(self._read, request.url.query, headers, body, task, spec)
        read = time.perf_counter()
        if isinstance(job.request, DecodeRequest) and job.request.preview:
            return await answer_with_preview(self._backend, job, self._served, self._in_worker, inferred)
        result = await _while_connected(request, self._backend.run(job))
        computed = time.perf_counter()
        response = await self._in_worker(_write, job, result)
        stages = {
            "read": 1e3 * (read - arrived),
            **result.milliseconds,
            "write": 1e3 * (time.perf_counter() - computed),
        }
        about = {
            "hybridge-model": job.spec.name,
            "server-timing": ", ".join(f"{stage};dur={spent:.1f}" for stage, spent in stages.items()),
            "access-control-expose-headers": ", ".join(protocol.EXPOSED_HEADERS),
        }
        if inferred:
            about["hybridge-inferred"] = inferred
        if job.warning:
            about["hybridge-warning"] = job.warning
        log.info("%s %s: %s", job.spec.name, _task_of(job), about["server-timing"])
        return Response(response.body, response.status, {**response.headers, **about})

    def _read(
        self,
        query: str,
        headers: dict[str, str],
        body: bytes,
        task: protocol.Task | None,
        spec: ModelSpec | None,
    ) -> tuple[Job, str | None]:
        request = protocol.read_request(query, headers, body, task)
        inferred = None
        if spec is None:
            spec, reason = infer_model(request, self._served, self._default_model)
            done = "decode" if isinstance(request, DecodeRequest) else "encode"
            inferred = f"model={spec.name}; task={done}; reason={reason}"
        return admit(request, spec, self._limits), inferred

    async def _read_body(self, request: Request) -> bytes:
        declared = request.headers.get("content-length", "")
        if declared.isdecimal():
            self._limits.check_body(int(declared))
        parts: list[bytes] = []
        received = 0
        stream = request.stream()
        while True:
            try:
                with fail_after(_BODY_PAUSE_S):
                    part = await anext(stream, None)
            except ClientDisconnect:
                raise RequestError("the body was cut short", saw=f"{received} bytes") from None
            except TimeoutError:
                raise TooSlow(
                    "the body stopped coming", saw=f"{received} bytes, then nothing for {_BODY_PAUSE_S} s"
                ) from None
            if part is None:
                return b"".join(parts)
            received += len(part)
            self._limits.check_body(received)
            parts.append(part)

    async def _in_worker(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *args)

    # ------------------------------------------------------------------------------------ information

    async def index(self, _: Request) -> Response:
        """GET /"""
        return JSONResponse(
            {
                "name": "hybridge",
                "version": __version__,
                "models": list(self._served),
                "documentation": "/openapi.json",
            }
        )

    async def models(self, _: Request) -> Response:
        """GET /v1/models"""
        return JSONResponse({"models": [_described(info) for info in self._backend.info()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{model}"""
        spec = self._find(request.path_params["model"])
        return JSONResponse(next(_described(info) for info in self._backend.info() if info.spec is spec))

    async def health(self, _: Request) -> Response:
        """GET /health: the process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """GET /ready: work is taken."""
        reason = self._backend.health()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "error": reason}, 503)

    def _find(self, name: str) -> ModelSpec:
        if name in self._served:
            return self._served[name]
        near = difflib.get_close_matches(name, self._served, n=1)
        raise UnknownModel(
            "no such model on this server",
            saw=repr(name[:80]),
            expected="one of " + ", ".join(self._served),
            hint=near[0] if near else f"`hybridge serve {name}`" if name in CATALOGUE else None,
        )


async def _while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result; if the client hangs up first, the work is cancelled and gives up its place in the line."""
    working = asyncio.ensure_future(work)
    # Once the body is read, the next message says that the client is gone.
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RequestError("the client hung up")
    finally:
        working.cancel()
        leaving.cancel()


def _write(job: Job, result: Result) -> protocol.HttpResponse:
    return protocol.write_answer(finish(job, result))


def _task_of(job: Job) -> str:
    return "decode" if isinstance(job.request, DecodeRequest) else "encode"


def _described(info: ModelInfo) -> dict[str, Any]:
    spec = info.spec
    return {
        "name": spec.name,
        "title": spec.title,
        "class": spec.class_name,
        "latent_channels": spec.latent_channels,
        "spatial_factor": spec.spatial_factor,
        "scaling_factor": spec.normalisation.scaling_factor,
        "shift_factor": spec.normalisation.shift_factor,
        "latents_mean": spec.normalisation.mean,
        "latents_std": spec.normalisation.std,
        "parent": spec.parent,
        "device": info.device,
        "device_reason": info.device_reason,
        "dtype": info.dtype,
        "dtype_reason": info.dtype_reason,
        "weights_bytes": info.weights_bytes,
        "config": dict(info.config),
        "decode": f"/v1/{spec.name}/decode",
        "encode": f"/v1/{spec.name}/encode",
    }


def failure_response(error: HybridgeError) -> Response:
    """The response for an error of ours."""
    response = protocol.write_failure(error)
    return Response(response.body, response.status, response.headers)
