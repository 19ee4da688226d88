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
    """Log one line about an error that is sent to a client.

    Our errors explain themselves, so the traceback is logged only for those with an unexpected cause.
    """
    status = protocol.write_failure(error).status
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        log.info("refused: %s", error.what)  # not the details, which may quote the sender
    elif status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("failed: %s", error, exc_info=error if error.__cause__ is not None else None)
    else:  # what a server comes to by load, memory or time, and says so
        log.warning("failed: %s", error)


def failure_response(error: HybridgeError, headers: dict[str, str] | None = None) -> Response:
    """Return the response for an error, with further headers if given."""
    response = protocol.write_failure(error)
    return Response(response.body, response.status, {**response.headers, **(headers or {})})


async def refuse(
    error: HybridgeError, scope: Scope, receive: Receive, send: Send, *, headers: dict[str, str] | None = None
) -> None:
    """Send an error from a middleware, whose exceptions no exception handler gets."""
    await failure_response(error, headers)(scope, receive, send)
