"""The handlers of ``/v1/keys``, by which admin keys list, add and revoke the keys of a running server."""

from __future__ import annotations

import logging
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...errors import AdminNeeded, RequestError, UnknownKey
from ..middleware.key_file import KeyFile, KeyRing, add_key, remove_key
from .request_headers import client_of
from .small_json import read_object

log = logging.getLogger("hybridge.server")

#: A key must not be in a cache.
_PRIVATE = {"cache-control": "no-store"}


class KeyRoutes:
    """The handlers, around the file of keys.

    Args:
        keys: The file; keys that are not in a file cannot be changed.
    """

    def __init__(self, keys: KeyFile | KeyRing | None) -> None:
        self._keys = keys

    def routes(self) -> list[Route]:
        """Return the routes of the handlers."""
        return [
            Route("/v1/keys", self.list_keys, methods=["GET"]),
            Route("/v1/keys", self.add, methods=["POST"]),
            Route("/v1/keys/{name}", self.revoke, methods=["DELETE"]),
        ]

    async def list_keys(self, request: Request) -> Response:
        """GET /v1/keys: names, never hashes."""
        ring = self._file_for(request).current
        return JSONResponse(
            {"keys": [_described(name, name in ring.admins) for name in ring.hashes]}, headers=_PRIVATE
        )

    async def add(self, request: Request) -> Response:
        """POST /v1/keys with ``{"name": …, "admin": false}``: the only answer that has the key."""
        file = self._file_for(request)
        given = await read_object(request, ("name", "admin"))
        name, is_admin = given.get("name"), given.get("admin", False)
        if not isinstance(name, str) or not isinstance(is_admin, bool):
            raise RequestError(
                "this describes no key", expected='{"name": "alice"}, with "admin": true for one that manages keys'
            )
        key = await run_in_threadpool(add_key, file.path, name, is_admin=is_admin)
        log.info("%s has added the key %s%s", client_of(request), name, ", an admin" if is_admin else "")
        return JSONResponse({**_described(name, is_admin), "key": key}, 201, _PRIVATE)

    async def revoke(self, request: Request) -> Response:
        """DELETE /v1/keys/{name}: requests with the key are refused from now on."""
        file, name = self._file_for(request), request.path_params["name"]
        await run_in_threadpool(remove_key, file.path, name)
        log.info("%s has revoked the key %s", client_of(request), name)
        return Response(status_code=204)

    def _file_for(self, request: Request) -> KeyFile:
        """Return the file, if the caller's key may change it."""
        if not isinstance(self._keys, KeyFile):
            raise UnknownKey("this server has no file of keys", hint="hybridge serve --keys FILE")
        if not request.scope["state"].get("is_admin"):
            raise AdminNeeded(
                "this key may not manage keys",
                expected="an admin's",
                hint="`hybridge keys add --admin FILE NAME` on the server's machine",
            )
        return self._keys


def _described(name: str, is_admin: bool) -> dict[str, Any]:
    return {"name": name, "admin": is_admin}
