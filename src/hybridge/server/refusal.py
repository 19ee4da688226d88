"""An error of ours as a response, for handlers and for middleware."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .. import protocol
from ..errors import HybridgeError


def failure_response(error: HybridgeError, headers: dict[str, str] | None = None) -> Response:
    """The response for an error, with further headers if need be."""
    response = protocol.write_failure(error)
    return Response(response.body, response.status, {**response.headers, **(headers or {})})


async def refuse(
    error: HybridgeError, scope: Scope, receive: Receive, send: Send, *, headers: dict[str, str] | None = None
) -> None:
    """Answers with an error from a middleware, where no exception handler reaches."""
    await failure_response(error, headers)(scope, receive, send)
