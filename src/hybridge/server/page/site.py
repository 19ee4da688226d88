"""Serves the page: its files, from memory, and the rule by which ``/`` is a page or JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from ...models.catalogue import STARTER
from ...protocol.requests import media_types

_FOLDER = Path(__file__).parent / "static"

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

#: The denoiser of the model that is shipped, which the page computes itself.
_UNET = STARTER / "unet" / "diffusion_pytorch_model.safetensors"
_UNET_NAME = "starter-unet.safetensors"

#: Where the page's files are; their addresses in the page are relative, so that a proxy may add a prefix.
_PREFIX = "/page/"

#: No script, style or connection but this server's own; ``media-src`` is for films that were decoded here.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # The browser asks again each time, and is told that nothing has changed.
    "cache-control": "no-cache",
}

#: The endpoint that answers ``GET /`` for programs.
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    tag: str


def routes(for_programs: Endpoint) -> list[Route]:
    """Return the routes of the page.

    Args:
        for_programs: Answers ``GET /`` where no page is asked for.
    """

    async def index(request: Request) -> Response:
        response = _answer(request, "index.html") if _prefers_page(request.headers) else await for_programs(request)
        response.headers["vary"] = "accept"
        return response

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name == _UNET_NAME:
            return FileResponse(_UNET, headers=_HEADERS, media_type="application/octet-stream")
        if name not in _files():
            raise HTTPException(404)
        return _answer(request, name)

    return [Route("/", index, methods=["GET"]), Route(f"{_PREFIX}{{name:path}}", file, methods=["GET"])]


def is_public(scope: Scope) -> bool:
    """Return whether a request is for the page, which says nothing about this server and so needs no key."""
    if scope["method"] not in ("GET", "HEAD"):
        return False
    path: str = scope["path"]
    if path == _PREFIX + _UNET_NAME:  # megabytes, which are for callers alone
        return False
    return path.startswith(_PREFIX) or (path == "/" and _prefers_page(Headers(scope=scope)))


def _prefers_page(headers: Headers) -> bool:
    """Return whether HTML is named in ``Accept``, and not after JSON; ``*/*`` stands for JSON, as it always did."""
    accepted = media_types(", ".join(headers.getlist("accept")))
    return next((one for one in accepted if one in ("text/html", "application/json")), None) == "text/html"


def _answer(request: Request, name: str) -> Response:
    file = _files()[name]
    headers = {**_HEADERS, "etag": file.tag}
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "content-type": file.media_type})


@cache
def _files() -> dict[str, _File]:
    """Return all files by their path below ``static``: what is not in here does not exist for a client."""
    found = {}
    for path in sorted(_FOLDER.rglob("*")):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.relative_to(_FOLDER).as_posix()] = _File(content, _TYPES[path.suffix], tag)
    return found
