"""The handler of ``/v1/pair``, which gives a key for the token of an invitation."""

from __future__ import annotations

import logging

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...errors import RequestError
from ..middleware.invitations import redeem
from ..middleware.key_file import KeyFile
from .small_json import read_object

log = logging.getLogger("hybridge.server")


class PairingRoutes:
    """The handler, around the file of keys and invitations."""

    def __init__(self, keys: KeyFile) -> None:
        self._keys = keys

    def routes(self) -> list[Route]:
        """Return the routes of the handler."""
        return [Route("/v1/pair", self.pair, methods=["POST"])]

    async def pair(self, request: Request) -> Response:
        """POST /v1/pair with ``{"token": …, "name": …}``: the only answer that has the key."""
        given = await read_object(request, ("token", "name"))
        token, name = given.get("token"), given.get("name")
        if not isinstance(token, str) or not isinstance(name, str):
            raise RequestError("this is no answer to an invitation", expected='{"token": "…", "name": "laptop"}')
        name, key = await run_in_threadpool(redeem, self._keys.path, token, name)
        log.info("a machine was paired, with the key %s", name)
        return JSONResponse({"name": name, "key": key}, 201, {"cache-control": "no-store"})
