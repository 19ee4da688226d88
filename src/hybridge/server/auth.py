"""Who may come in: keys in a file, and the gate that asks for them.

Old clients can set no headers, so a key is also read from the address: as the user or the password in front of the
host, as ``?key=…``, and as a path prefix, ``/k/KEY/v1/…``.  The last two are taken out of the address before
anything else sees it, whether or not this server has keys.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import HybridgeError, KeyNeeded
from .record import record_of
from .refusal import refuse

#: 256 bits, more than anybody can try.
_KEY_BYTES = 32

#: Longer ones are not ours, and are not worth a hash.
_LONGEST_KEY = 256

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_HASHED = re.compile(r"sha256:[0-9a-f]{64}")

#: Open to everybody.  Not ``/ready`` and ``/metrics``: why a server is not ready and which models are asked for how
#: often is nobody else's business, and whatever probes them can be given a key.
_OPEN_PATHS = frozenset({"/health"})

_PREFIX = "/k/"


def hash_key(key: str) -> str:
    """What is kept of a key.

    One round of SHA-256, without salt: both exist because people choose passwords that can be guessed.  These keys
    are 256 random bits that only :func:`add_key` makes, so a stolen file gives nothing to guess with, equal keys do
    not occur, and each request costs the server a microsecond instead of the tenth of a second of a slow hash.
    """
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys that a server knows: name → hash."""

    hashes: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> KeyRing:
        """Reads lines of ``name sha256:…``; empty lines and those that begin with ``#`` say nothing.

        Raises:
            HybridgeError: when a line is none of these, or a name stands twice.
            OSError: when the file cannot be read.
        """
        hashes: dict[str, str] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            name, *rest = line.split()
            if len(rest) != 1 or not _NAME.fullmatch(name) or not _HASHED.fullmatch(rest[0]):
                # Not shown: it may be a key that somebody wrote there.
                raise HybridgeError(
                    f"line {number} of {path} is no key",
                    expected="a name and sha256:… with 64 digits",
                    hint=f"hybridge keys add {path} NAME",
                )
            if name in hashes:
                raise HybridgeError(f"two keys of one name in {path}", saw=name)
            hashes[name] = rest[0]
        return cls(hashes)

    def name_of(self, key: str) -> str | None:
        """The name of a key, or None for one that is not here.

        Every hash is compared, and each in the same time, so that the answer's delay says nothing.
        """
        if len(key) > _LONGEST_KEY:
            return None
        hashed, found = hash_key(key), None
        for name, known in self.hashes.items():
            if hmac.compare_digest(hashed, known):
                found = name
        return found

    def write(self, path: Path) -> None:
        """Replaces the file as a whole, readable by its owner alone.

        Raises:
            OSError: when it cannot be written.
        """
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # which opens it as 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.writelines(f"{name} {hashed}\n" for name, hashed in self.hashes.items())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def add_key(path: Path, name: str) -> str:
    """Adds a new key to a file, which is made if need be, and returns the key: it is not kept.

    Raises:
        HybridgeError: when the name cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise HybridgeError("not a key's name", saw=repr(name[:80]), expected="1 to 64 of A-Z a-z 0-9 . _ @ -")
    ring = KeyRing.read(path) if path.exists() else KeyRing({})
    if name in ring.hashes:
        raise HybridgeError(f"{path} has a key named {name}", hint=f"hybridge keys remove {path} {name}")
    key = secrets.token_urlsafe(_KEY_BYTES)
    KeyRing({**ring.hashes, name: hash_key(key)}).write(path)
    return key


def remove_key(path: Path, name: str) -> None:
    """Takes a key out of a file.

    Raises:
        HybridgeError: when no key has this name.
    """
    ring = KeyRing.read(path)
    if name not in ring.hashes:
        raise HybridgeError(f"{path} has no key named {name}", expected=", ".join(ring.hashes) or None)
    KeyRing({known: hashed for known, hashed in ring.hashes.items() if known != name}).write(path)


class Gate:
    """ASGI middleware: takes keys out of requests, refuses those without one, and says who is asking.

    ``scope["state"]["client_id"]`` is ``key:NAME`` where keys are asked for, else ``address:…``.

    Args:
        app: What is behind the gate.
        keys: The keys; None lets everybody in.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing | None = None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = _take_keys(scope)
        client_id = _address_of(scope)
        is_open = scope["path"] in _OPEN_PATHS
        if self._keys is not None and not is_open:
            name = next(filter(None, map(self._keys.name_of, offered)), None)
            if name is None:
                await refuse(_refusal(offered), scope, receive, send)
                return
            client_id = f"key:{name}"
        scope["state"]["client_id"] = record_of(scope).client_id = client_id
        await self._app(scope, receive, send)


def _refusal(offered: list[str]) -> KeyNeeded:
    return KeyNeeded(
        "this server does not know that key" if offered else "this server wants a key",
        expected="one from `hybridge keys add`",
        hint="Authorization: Bearer KEY, or in the address: http://user:KEY@host/…, ?key=KEY, or host/k/KEY/v1/…",
    )


def _take_keys(scope: Scope) -> list[str]:
    """Every key that a request carries, none of which is left in the scope."""
    found = _from_headers(value for name, value in scope["headers"] if name == b"authorization")
    scope["headers"] = [header for header in scope["headers"] if header[0] != b"authorization"]
    parts = scope["query_string"].split(b"&")
    given = [part for part in parts if unquote_to_bytes(part.partition(b"=")[0]) == b"key"]
    if given:
        scope["query_string"] = b"&".join(part for part in parts if part not in given)
        found += [unquote(part.partition(b"=")[2].decode("latin-1")) for part in given]
    if scope["path"].startswith(_PREFIX):
        key, _, path = scope["path"][len(_PREFIX) :].partition("/")
        found.append(key)
        scope["path"] = f"/{path}"
        scope["raw_path"] = scope["path"].encode("utf-8", "replace")
    return [key for key in found if key]


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
    """``address:`` and the peer's; of an IPv6 address the /64, which is what one household or machine is given."""
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
