"""An error of ours as a response, for handlers and for middleware."""

from __future__ import annotations

import logging
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .. import protocol
from ..errors import HybridgeError

log = logging.getLogger("hybridge.server")


def log_failure(error: HybridgeError) -> None:
    """Writes down an error that somebody is answered with."""
    if protocol.write_failure(error).status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("failed: %s", error, exc_info=error)
    else:
        log.info("refused: %s", error.what)  # not the details, which may quote the sender


def failure_response(error: HybridgeError, headers: dict[str, str] | None = None) -> Response:
    """The response for an error, with further headers if need be."""
    response = protocol.write_failure(error)
    return Response(response.body, response.status, {**response.headers, **(headers or {})})


async def refuse(
    error: HybridgeError, scope: Scope, receive: Receive, send: Send, *, headers: dict[str, str] | None = None
) -> None:
    """Answers with an error from a middleware, where no exception handler reaches."""
    await failure_response(error, headers)(scope, receive, send)
