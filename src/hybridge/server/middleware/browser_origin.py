"""Protects a server without keys from web pages of other sites.

Such a server trusts everyone that reaches it, and any page in a browser on its machine reaches it. There are two
dangers.  A page of another site can post, although it cannot read the answer, and so use the device: browsers say
so in ``Origin`` and ``Sec-Fetch-Site``.  And the DNS name of a page can be made to point to this machine (DNS
rebinding), after which the browser takes this server for the page's site: ``Host`` shows that.
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

#: Methods that change nothing and cost little; a page of another site cannot read their answers.
_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})


class BrowserOriginMiddleware:
    """ASGI middleware: refuses requests that a browser sends for a page of another site.

    Programs send neither ``Origin`` nor ``Sec-Fetch-Site``, so nothing changes for them.

    Args:
        app: The application behind it.
        origins: Origins of pages that may call, such as ``https://their.example``; ``*`` for all.
        names: Host names of this server, besides addresses, ``localhost`` and the machine's own name.
        is_shared: Whether other machines reach the server, too.  They have names for it that are not known here, so
            programs may use any, and pages those that one's own network gives out, or HTTPS, for
            which a page with a rebound name has no certificate.
    """

    def __init__(
        self, app: ASGIApp, origins: Iterable[str] = (), names: Iterable[str] = (), *, is_shared: bool = False
    ) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._is_shared = is_shared
        own = socket.gethostname().lower()
        self._names = frozenset({own, f"{own}.local", *(name.lower() for name in names)})

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
        is_ours = not host or name in self._names or _is_safe(name)
        if not is_ours and not self._is_shared:
            return _misdirected(name)
        if method in _HARMLESS or "*" in self._origins:
            return None
        origin = headers.get("origin")
        if origin is None:
            is_foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        else:
            is_foreign = origin not in self._origins and _host_of(origin) != host.lower()
        if not is_foreign:
            is_rebound = not is_ours and not _is_private(name) and (origin or "").startswith("http://")
            return _misdirected(name) if is_rebound and origin not in self._origins else None
        saw = repr(origin[:80]) if origin else "another site"
        return 403, f"a page of {saw} may not call this server. Try: --cors ORIGIN, which names pages that may"


def _misdirected(name: str) -> tuple[int, str]:
    return 421, (
        f"this server does not go by the name {name[:80]!r}. Expected: localhost, or an address."
        " Try: --allowed-host NAME, where the name is meant, such as behind a proxy; or keys"
    )


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _name_of(host: str) -> str:
    """Return the name in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().removesuffix(".")


def _is_private(name: str) -> bool:
    """Whether a name is given out by one's own network alone, and so not by whoever made a page."""
    return "." not in name or name.endswith((".local", ".lan", ".internal", ".home.arpa"))


def _is_safe(name: str) -> bool:
    """Whether DNS has no part in a name: addresses, and names that browsers reserve for this machine."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    return True
