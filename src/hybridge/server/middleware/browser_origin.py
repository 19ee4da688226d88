"""What web pages may ask of a server that asks nobody for a key.

Such a server trusts whoever reaches it, and a browser on its machine reaches it for every page that is open there.
There are two dangers.  A page of another site may post although it cannot read the answer, which costs the device
all the same: browsers say so in ``Origin`` and ``Sec-Fetch-Site``.  And a page may have the name of its own site
resolved to this machine (DNS rebinding), after which a browser takes the server for that site; ``Host`` shows it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ... import protocol

#: They change nothing here, cost little, and a page of another site cannot read what they bring.
_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})


class BrowserOriginMiddleware:
    """ASGI middleware: refuses what a browser sends for a page of another site.

    Programs send neither ``Origin`` nor ``Sec-Fetch-Site``, and are not concerned.

    Args:
        app: What answers.
        origins: Of pages that may call, such as ``https://their.example``; ``*`` for all.
        names: Under which this server is called, besides addresses, ``localhost`` and the machine's own name; None
            where any will do, because others than this machine reach it, too.
    """

    def __init__(self, app: ASGIApp, origins: Iterable[str] = (), names: Iterable[str] | None = None) -> None:
        self._app = app
        self._origins = frozenset(origins)
        own = socket.gethostname().lower()
        self._names = None if names is None else frozenset({own, f"{own}.local", *(name.lower() for name in names)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._judge(scope["method"], Headers(scope=scope)) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        answer = protocol.write_status(*refusal)
        await Response(answer.body, answer.status, answer.headers)(scope, receive, send)

    def _judge(self, method: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        name = _name_of(host)
        if host and self._names is not None and not (name in self._names or _is_safe(name)):
            return 421, (
                f"this server does not go by the name {name[:80]!r}. Expected: localhost, or an address."
                " Try: --allowed-host NAME, where the name is meant, such as behind a proxy; or keys"
            )
        if method in _HARMLESS or "*" in self._origins:
            return None
        origin = headers.get("origin")
        if origin is None:
            is_foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        else:
            is_foreign = origin not in self._origins and _host_of(origin) != host.lower()
        if not is_foreign:
            return None
        saw = repr(origin[:80]) if origin else "another site"
        return 403, f"a page of {saw} may not call this server. Try: --cors ORIGIN, which names pages that may"


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _name_of(host: str) -> str:
    """Of a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().removesuffix(".")


def _is_safe(name: str) -> bool:
    """Whether no DNS answers for a name: addresses, and what browsers keep for this machine."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    return True
