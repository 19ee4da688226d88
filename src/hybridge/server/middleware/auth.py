"""API keys: a file of their hashes, and the middleware that checks them.

Old clients cannot set headers, so a key is also read from the URL: as the user or the password before the host, as
``?key=…``, and as a path prefix, ``/k/KEY/v1/…``.  The last two are removed from the URL before any other code sees
it, whether or not this server has keys.
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
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import HybridgeError, KeyNeeded
from ..error_responses import refuse
from .request_record import record_of

#: 256 bits: too many to guess.
_KEY_BYTES = 32

#: Longer keys are not ours and are not hashed.
_LONGEST_KEY = 256

#: Most bytes of a file of keys; a larger one is another file that was named by mistake.
_MOST_BYTES = 16 * 2**20

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_HASHED = re.compile(r"sha256:[0-9a-f]{64}")

#: Paths that need no key.  ``/ready`` and ``/metrics`` need one: the reason why a server is not ready and the use
#: of its models are not public, and a program that probes them can be given a key.
_OPEN_PATHS = frozenset({"/health"})

_PREFIX = "/k/"


def hash_key(key: str) -> str:
    """Return the hash of a key, which is all that is stored.

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
        """Read lines of ``name sha256:…``; empty lines and lines that begin with ``#`` are ignored.

        Raises:
            HybridgeError: when the file cannot be read, a line is none of these, or a name occurs twice.
        """
        return cls(_parse(_read(path), path))

    def name_of(self, key: str) -> str | None:
        """Return the name of a key; None if it is unknown.

        Every hash is compared in constant time, so that the time of the answer reveals nothing.
        """
        if len(key) > _LONGEST_KEY:
            return None
        hashed, found = hash_key(key), None
        for name, known in self.hashes.items():
            if hmac.compare_digest(hashed, known):
                found = name
        return found


def add_key(path: Path, name: str) -> str:
    """Add a new key to a file, which is created if it does not exist, and return the key, which is not stored.

    Raises:
        HybridgeError: when the name or the file cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise HybridgeError("not a key's name", saw=repr(name[:80]), expected="1 to 64 of A-Z a-z 0-9 . _ @ -")
    key = secrets.token_urlsafe(_KEY_BYTES)
    with _editing(path) as file:
        text = _read(file)
        if name in _parse(text, path):
            raise HybridgeError(f"{path} has a key named {name}", hint=f"hybridge keys remove {path} {name}")
        end = "" if not text or text.endswith("\n") else "\n"
        _replace(file, f"{text}{end}{name} {hash_key(key)}\n")
    return key


def remove_key(path: Path, name: str) -> None:
    """Remove a key from a file, whose other lines stay as they are.

    Raises:
        HybridgeError: when no key has this name, or the file cannot be used.
    """
    text = _read(path)  # whose absence is an error, before anything is made
    with _editing(path) as file:
        text = _read(file)
        names = _parse(text, path)
        if name not in names:
            raise HybridgeError(f"{path} has no key named {name}", expected=", ".join(names) or None)
        _replace(file, "".join(line for line in text.splitlines(keepends=True) if line.split()[:1] != [name]))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise HybridgeError(
            "the key file cannot be read",
            saw=f"{path}: {error.strerror}",
            expected="a file with a line for each key",
            hint=f"hybridge keys add {path} NAME",
        ) from None
    if len(content) > _MOST_BYTES:
        raise HybridgeError(f"{path} is no key file", saw="more than 16 MiB", expected="a line for each key")
    return content.decode("utf-8-sig", "replace")  # editors on Windows begin with a byte order mark


def _parse(text: str, path: Path) -> dict[str, str]:
    hashes: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
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
    return hashes


@contextmanager
def _editing(path: Path) -> Iterator[Path]:
    """Lock the file (behind links) against other processes and give its path; create it if it does not exist.

    Raises:
        HybridgeError: when it cannot be opened to be written, or :func:`_replace` fails within the block.
    """
    file = Path(os.path.realpath(path))
    try:
        with _locked(file):
            yield file
    except OSError as error:
        raise HybridgeError("the key file cannot be written", saw=f"{path}: {error.strerror}") from None


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows, where a file that is open cannot be replaced either
        yield
        return
    while True:
        with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Whoever had the lock before has put another file in this one's place.
            if not file.exists() or not os.path.samestat(os.fstat(lock.fileno()), file.stat()):
                continue
            yield
            return


def _replace(file: Path, text: str) -> None:
    """Write another file and rename it, so that a reader sees either the old file or the new one, whole."""
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name)  # which opens it as 0600
    try:
        with os.fdopen(descriptor, "wb") as written:
            written.write(text.encode())
            written.flush()
            if os.name == "posix" and file.exists():
                before, now = file.stat(), os.fstat(descriptor)
                if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            os.fsync(descriptor)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class AuthMiddleware:
    """ASGI middleware: removes keys from requests, refuses requests without one, and sets the client's id.

    ``scope["state"]["client_id"]`` is ``key:NAME`` where keys are asked for, else ``address:…``.

    Args:
        app: The application behind it.
        keys: The keys; None if no key is needed.
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
    """Return every key of a request, and remove them from the scope."""
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
