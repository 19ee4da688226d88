"""The ASGI application: routes, middleware, and error handlers that answer in JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import cast

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .. import protocol
from ..errors import HybridgeError
from .async_jobs.registry import AsyncJobRegistry
from .async_jobs.spool import SpoolStore
from .async_jobs.store import MemoryStore
from .error_responses import failure_response, log_failure
from .http.cloud_routes import CloudRoutes
from .http.endpoints import Endpoints
from .http.guess import GuessRoute
from .http.job_routes import JobRoutes
from .http.key_routes import KeyRoutes
from .http.media_threads import MediaThreads
from .http.openapi import describe
from .http.pairing_routes import PairingRoutes
from .http.prompt_kind import PromptKind
from .http.request_body import BodyReader
from .http.served_models import ServedModels
from .http.vae_kind import VaeKind
from .middleware.auth import AuthMiddleware
from .middleware.browser_origin import BrowserOriginMiddleware
from .middleware.draining import Drain, DrainMiddleware
from .middleware.key_file import KeyFile, KeyRing
from .middleware.request_record import Observer, RequestRecordMiddleware
from .page import site
from .process.logs import log_job, log_request
from .process.metrics import Metrics
from .process.startup_checks import is_loopback
from .scheduling.backend import Backend
from .settings import Settings

#: Seconds that shutdown waits for picture files whose clients have left.
_MEDIA_PATIENCE_S = 1.0


def create_app(
    backend: Backend,
    settings: Settings | None = None,
    *,
    keys: KeyRing | KeyFile | None = None,
    drain: Drain | None = None,
    observers: Sequence[Observer] = (),
) -> Starlette:
    """Return the application around a backend, which it closes when it ends.

    Its ``state.media`` are the threads for picture files, one of which may still be busy then.

    Args:
        backend: Does the work.
        settings: Limits and other settings; the caller uses those about addresses and files.
        keys: The keys that clients must have; those of a file may change meanwhile.  None if no key is needed.
        drain: Counts the requests that are being worked on, and ends them at shutdown.
        observers: Told of each request when it ends, besides the log and the metrics.
    """
    settings = settings or Settings()
    drain = drain or Drain()
    store = MemoryStore() if settings.spool is None else SpoolStore(settings.spool)
    body_reader = BodyReader(settings.limits)
    metrics = Metrics(backend, lambda: body_reader.held_bytes)
    async_jobs = AsyncJobRegistry(store, settings.async_job_limits, observers=(log_job, metrics.observe_job))
    drain.begin_with(async_jobs.begin_to_end)
    drain.also_wait_for(async_jobs.finished)
    drain.end_with(async_jobs.close)
    media = MediaThreads()
    served = ServedModels(backend.info())
    about_kinds = (served, settings.limits, settings.default_model)
    kinds = (PromptKind(*about_kinds), VaeKind(*about_kinds))
    endpoints = Endpoints(
        backend,
        served,
        kinds,
        body_reader,
        metrics,
        async_jobs,
        media,
        limits=settings.limits,
        deadline_s=settings.deadline_s,
    )

    guess = GuessRoute(served, body_reader, media)
    cloud = settings.cloud_routes
    of_cloud: list[Route] = []
    if cloud is not None:
        of_cloud = CloudRoutes(cloud, endpoints, served, body_reader, media, settings.limits).routes()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await async_jobs.open(endpoints.answer_later)
        yield
        await async_jobs.close()
        await run_in_threadpool(backend.close)
        await run_in_threadpool(media.close, _MEDIA_PATIENCE_S)

    async def openapi(_: Request) -> Response:
        return JSONResponse(describe(list(served.vaes), list(served.texts), pairs=settings.pairing))

    app = Starlette(
        routes=[
            # They are tried in this order.
            *of_cloud,
            # With and without a slash: a redirect would have no JSON, and not every client follows it.
            *(Route(f"/v1/{{model}}/decode{end}", endpoints.decode, methods=["POST"]) for end in ("", "/")),
            *(Route(f"/v1/{{model}}/encode{end}", endpoints.encode, methods=["POST"]) for end in ("", "/")),
            *(Route(f"/v1/{{model}}/prompt{end}", endpoints.prompt, methods=["POST"]) for end in ("", "/")),
            Route("/te", endpoints.sd_next, methods=["POST"]),
            *site.routes(for_programs=endpoints.index),
            Route("/", endpoints.infer, methods=["POST"]),
            Route("/v1/guess", guess.guess, methods=["POST"]),
            Route("/predict", endpoints.infer, methods=["POST"]),
            Route("/v1/models", endpoints.models, methods=["GET"]),
            Route("/v1/models/{model}", endpoints.model, methods=["GET"]),
            *JobRoutes(async_jobs, endpoints.result_bytes).routes(),
            *KeyRoutes(keys).routes(),
            *(PairingRoutes(keys).routes() if settings.pairing and isinstance(keys, KeyFile) else ()),
            Route("/health", endpoints.health, methods=["GET"]),
            Route("/ready", endpoints.ready, methods=["GET"]),
            Route("/metrics", endpoints.metrics, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
        ],
        # From the outside in.  AuthMiddleware comes before everything that reads the URL, because it removes the
        # key from it; CORS comes before AuthMiddleware, because browsers send no key with a preflight request.
        middleware=[
            Middleware(RequestRecordMiddleware, observers=(log_request, metrics.observe, *observers)),
            *_cors(settings.cors),
            *_pages(settings, keys),
            Middleware(AuthMiddleware, keys=keys, is_public=site.is_public),
            Middleware(DrainMiddleware, drain=drain),
        ],
        exception_handlers={
            HybridgeError: _ours,
            HTTPException: _https,
            Exception: _unexpected,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.media = media
    return app


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    if not origins:
        return []
    return [
        Middleware(
            _JsonCors,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=[*protocol.EXPOSED_HEADERS, "x-request-id"],
        )
    ]


def _pages(settings: Settings, keys: KeyRing | KeyFile | None) -> list[Middleware]:
    if keys is not None:
        return []  # no page of another site has a key
    is_shared = not is_loopback(settings.address)
    names = settings.allowed_hosts
    return [Middleware(BrowserOriginMiddleware, origins=settings.cors, names=names, is_shared=is_shared)]


class _JsonCors(CORSMiddleware):
    """Starlette's own, except that a refusal is JSON like every other error."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == HTTPStatus.OK:
            return response
        refusal = protocol.write_status(response.status_code, bytes(response.body).decode())
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return Response(refusal.body, refusal.status, {**kept, **refusal.headers})


# Starlette hands each handler the class that it is registered for, but types all of them as Exception.


async def _ours(_: Request, error: Exception) -> Response:
    ours = cast("HybridgeError", error)
    log_failure(ours)
    return failure_response(ours)


async def _https(request: Request, error: Exception) -> Response:
    refusal, path = cast("HTTPException", error), request.scope["path"]
    message = f"{refusal.detail}: {request.method} {path[:120]}. Try: GET /openapi.json for what there is"
    response = protocol.write_status(refusal.status_code, message)
    return Response(response.body, response.status, {**response.headers, **(refusal.headers or {})})


async def _unexpected(_: Request, error: Exception) -> Response:
    # Starlette logs the traceback; the client does not get it.
    response = protocol.write_status(500, f"unexpected {type(error).__name__}; the server's log says more")
    return Response(response.body, response.status, response.headers)
