"""The middleware that checks API keys.

Old clients cannot set headers, so a key is also read from the URL: as the user or the password before the host, as
``?key=…``, and as a path prefix, ``/k/KEY/v1/…``.  The last two are removed from the URL before any other code sees
it, whether or not this server has keys.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Callable, Iterable
from urllib.parse import unquote, unquote_to_bytes

from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import KeyNeeded
from ..error_responses import refuse
from .key_file import KeyFile, KeyRing
from .request_record import record_of

#: Paths that need no key.  ``/ready`` and ``/metrics`` need one: the reason why a server is not ready and the use
#: of its models are not public, and a program that probes them can be given a key.  Who pairs has no key yet.
_OPEN_PATHS = frozenset({"/health", "/v1/pair"})

_PREFIX = "/k/"

#: Keys of one request that are looked up, more than a client can mean: each is compared with all that there are.
_MOST_OFFERED = 8


class AuthMiddleware:
    """ASGI middleware: removes keys from requests, refuses requests without one, and sets the client's id.

    ``scope["state"]["client_id"]`` is ``key:NAME`` where keys are asked for, else ``address:…``, and ``"is_admin"``
    says whether the key may manage keys.

    Args:
        app: The application behind it.
        keys: The keys; None if no key is needed.
        is_public: Whether a request needs no key, besides those of :data:`_OPEN_PATHS`; called without keys in the
            scope.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing | KeyFile | None = None,
        is_public: Callable[[Scope], bool] = lambda _: False,
    ) -> None:
        self._app = app
        self._keys = keys
        self._is_public = is_public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = _take_keys(scope)
        client_id = _address_of(scope)
        is_open = scope["path"] in _OPEN_PATHS or self._is_public(scope)
        scope["state"]["is_admin"] = False
        if self._keys is not None and not is_open:
            ring = self._keys.current
            name = next(filter(None, map(ring.name_of, offered)), None)
            if name is None:
                await refuse(_refusal(offered), scope, receive, send)
                return
            client_id = f"key:{name}"
            scope["state"]["is_admin"] = name in ring.admins
        scope["state"]["client_id"] = record_of(scope).client_id = client_id
        await self._app(scope, receive, send)


def _refusal(offered: list[str]) -> KeyNeeded:
    return KeyNeeded(
        "this server does not know that key" if offered else "this server wants a key",
        expected="one from `hybridge keys add`",
        hint="Authorization: Bearer KEY, or in the address: http://user:KEY@host/…, ?key=KEY, or host/k/KEY/v1/…",
    )


def _take_keys(scope: Scope) -> list[str]:
    """Return the keys of a request, at most eight, and remove all of them from the scope."""
    found = _from_headers(value for name, value in scope["headers"] if name == b"authorization")
    scope["headers"] = [header for header in scope["headers"] if header[0] != b"authorization"]
    parts = scope["query_string"].split(b"&")
    are_keys = [unquote_to_bytes(part.partition(b"=")[0]) == b"key" for part in parts]
    if any(are_keys):
        given = [part for part, is_key in zip(parts, are_keys, strict=True) if is_key]
        scope["query_string"] = b"&".join(part for part, is_key in zip(parts, are_keys, strict=True) if not is_key)
        found += [unquote(part.partition(b"=")[2].decode("latin-1")) for part in given]
    if scope["path"].startswith(_PREFIX):
        key, _, path = scope["path"][len(_PREFIX) :].partition("/")
        found.append(key)
        scope["path"] = f"/{path}"
        scope["raw_path"] = scope["path"].encode("utf-8", "replace")
    return [key for key in dict.fromkeys(found) if key][:_MOST_OFFERED]


def _from_headers(values: Iterable[bytes]) -> list[str]:
    found = []
    for value in values:
        scheme, _, credentials = value.decode("latin-1").strip().partition(" ")
        if scheme.lower() == "bearer":
            found.append(credentials.strip())
        elif scheme.lower() == "basic":
            try:
                user, _, password = base64.b64decode(credentials, validate=True).decode().partition(":")
            except (binascii.Error, ValueError):
                continue
            found += [password, user]
    return found


def _address_of(scope: Scope) -> str:
    """Return ``address:`` and the peer's address; for IPv6 the /64, which one household or machine is given."""
    client = scope.get("client")
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return "address:unknown"  # such as a proxy's odd X-Forwarded-For
    # A socket for both versions shows IPv4 as a part of IPv6, where all of it lies in one /64.
    address = getattr(address, "ipv4_mapped", None) or address
    if isinstance(address, ipaddress.IPv6Address):
        return f"address:{ipaddress.ip_network((address, 64), strict=False)}"
    return f"address:{address}"
