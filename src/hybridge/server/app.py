"""The ASGI application: which path goes where, and that every error leaves as JSON."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import cast

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .. import protocol
from ..errors import HybridgeError
from .backend import Backend
from .endpoints import Endpoints, failure_response
from .ledger import Ledger
from .long_work import LongWork
from .openapi import describe
from .settings import Settings
from .spool import Memory, Spool

log = logging.getLogger("hybridge.server")


def create_app(backend: Backend, settings: Settings | None = None) -> Starlette:
    """The application around a backend, which it closes when it ends."""
    settings = settings or Settings()
    store = Memory() if settings.spool is None else Spool(settings.spool)
    ledger = Ledger(store, settings.ledger_limits)
    endpoints = Endpoints(
        backend,
        settings.limits,
        ledger,
        deadline_s=settings.deadline_s,
        default_model=settings.default_model,
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await ledger.open(endpoints.answer_later)
        yield
        await ledger.close()
        await run_in_threadpool(backend.close)
        endpoints.close()

    async def openapi(_: Request) -> Response:
        return JSONResponse(describe([info.spec.name for info in backend.info()]))

    app = Starlette(
        routes=[
            Route("/", endpoints.index, methods=["GET"]),
            Route("/", endpoints.infer, methods=["POST"]),
            Route("/predict", endpoints.infer, methods=["POST"]),
            Route("/v1/models", endpoints.models, methods=["GET"]),
            Route("/v1/models/{model}", endpoints.model, methods=["GET"]),
            # With and without a slash: a redirect would have no JSON, and not every client follows it.
            *(Route(f"/v1/{{model}}/decode{end}", endpoints.decode, methods=["POST"]) for end in ("", "/")),
            *(Route(f"/v1/{{model}}/encode{end}", endpoints.encode, methods=["POST"]) for end in ("", "/")),
            *LongWork(ledger, endpoints.result_bytes).routes(),
            Route("/health", endpoints.health, methods=["GET"]),
            Route("/ready", endpoints.ready, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
        ],
        middleware=_cors(settings.cors),
        exception_handlers={
            HybridgeError: _ours,
            HTTPException: _https,
            Exception: _unexpected,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=protocol.EXPOSED_HEADERS,
        )
    ]


# Starlette hands each handler the class that it is registered for, but types all of them as Exception.


async def _ours(_: Request, error: Exception) -> Response:
    ours = cast("HybridgeError", error)
    response = failure_response(ours)
    if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("failed: %s", ours, exc_info=ours)
    else:
        log.info("refused: %s", ours.what)  # not the details, which may quote the sender
    return response


async def _https(request: Request, error: Exception) -> Response:
    refusal = cast("HTTPException", error)
    message = (
        f"{refusal.detail}: {request.method} {request.url.path[:120]}. Try: GET /openapi.json for what there is"
    )
    response = protocol.write_status(refusal.status_code, message)
    return Response(response.body, response.status, {**response.headers, **(refusal.headers or {})})


async def _unexpected(_: Request, error: Exception) -> Response:
    # Starlette logs the traceback; a stranger learns nothing of it.
    response = protocol.write_status(500, f"unexpected {type(error).__name__}; the server's log says more")
    return Response(response.body, response.status, response.headers)
