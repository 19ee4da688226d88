"""API keys: a file of their hashes, which stays the truth, and the keys that a running server reads from it."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import HybridgeError, KeyExists, RequestError, TooLarge, UnknownKey

log = logging.getLogger("hybridge.server")

#: 256 bits: too many to guess.
_KEY_BYTES = 32

#: Longer keys are not ours and are not hashed.
_LONGEST_KEY = 256

#: Most bytes of a file of keys; a larger one is another file that was named by mistake.
_MOST_BYTES = 16 * 2**20

#: Seconds until a file that could not be read is tried again, though it looks as before: the reason may have been a
#: lack of open files, and a revoked key must not stay valid because of it.
_AGAIN_S = 1.0

#: Most keys to which another is added: each request is compared with all of them.
MOST_KEYS = 4096

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_HASHED = re.compile(r"sha256:[0-9a-f]{64}")

#: What stands behind the hash of a key that may manage keys, and of an invitation (seconds since 1970).
_ADMIN = "admin"
_UNTIL = re.compile(r"until=([0-9]{1,12})")


def hash_key(key: str) -> str:
    """Return the hash of a key, which is all that is stored.

    One round of SHA-256, without salt: both exist because people choose passwords that can be guessed.  These keys
    are 256 random bits that only :func:`add_key` makes, so a stolen file gives nothing to guess with, equal keys do
    not occur, and each request costs the server a microsecond instead of the tenth of a second of a slow hash.
    """
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True, slots=True)
class Invitation:
    """The hash of a token, and the time until which it is good, in seconds since 1970."""

    hash: str
    until: int


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of a server at one moment.

    Attributes:
        hashes: The hash of each key, by name.
        admins: The names of the keys that may manage keys.
        invitations: Tokens that are good for a new key, by name; :mod:`.invitations` says more.
    """

    hashes: dict[str, str]
    admins: frozenset[str] = frozenset()
    invitations: dict[str, Invitation] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> KeyRing:
        """Read lines of ``name sha256:…``, with ``admin`` or ``until=…`` behind it or nothing.

        Empty lines and lines that begin with ``#`` are ignored.

        Raises:
            HybridgeError: when the file cannot be read, a line is none of these, or a name occurs twice.
        """
        return _parse(_read(path), path)

    @property
    def current(self) -> KeyRing:
        """These keys, which do not change; :attr:`KeyFile.current` is its counterpart."""
        return self

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


class KeyFile:
    """The keys of a file, which is read again whenever it has changed.

    Args:
        path: The file.

    Raises:
        HybridgeError: as :meth:`KeyRing.read`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = _version(path)
        self._ring = KeyRing.read(path)
        self._unread: object = self._seen  # the version that could not be read last, if it is not the one that was
        self._again_at = 0.0

    @property
    def current(self) -> KeyRing:
        """The keys now.  While the file cannot be read, they stay as they were, and the log says so once."""
        version = _version(self.path)
        if version != self._seen and (version != self._unread or time.monotonic() >= self._again_at):
            try:
                self._ring = KeyRing.read(self.path)
            except HybridgeError as error:
                if version != self._unread:
                    log.error("the keys stay as they were: %s", error)
                self._unread, self._again_at = version, time.monotonic() + _AGAIN_S
            else:
                log.info("the keys were read again: %d", len(self._ring.hashes))
                self._seen = self._unread = version
        return self._ring


def _version(path: Path) -> tuple[int, ...] | None:
    """Return what differs after every change of a file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def add_key(path: Path, name: str, *, is_admin: bool = False) -> str:
    """Add a new key to a file, which is created if it does not exist, and return the key, which is not stored.

    Args:
        path: The file.
        name: Whose key it is: 1 to 64 of ``A-Z a-z 0-9 . _ @ -``.
        is_admin: Whether it may manage keys.

    Raises:
        RequestError: for a name that cannot be one.
        KeyExists: when a key has this name.
        TooLarge: when there are too many keys.
        HybridgeError: when the file cannot be used.
    """
    check_name(name)
    with editing(path) as file:
        if name in file.ring.hashes or name in file.ring.invitations:
            raise KeyExists(f"a key is named {name} already", hint="another name, or removing that key first")
        key = file.add(name, _ADMIN if is_admin else "")
        file.write()
    return key


def check_name(name: str) -> None:
    """Raise RequestError for a text that cannot be the name of a key."""
    if not _NAME.fullmatch(name):
        raise RequestError("not a key's name", saw=repr(name[:80]), expected="1 to 64 of A-Z a-z 0-9 . _ @ -")


def remove_key(path: Path, name: str) -> None:
    """Remove a key from a file, whose other lines stay as they are.

    Raises:
        UnknownKey: when no key has this name.
        HybridgeError: when the file cannot be used.
    """
    _read(path)  # whose absence is an error, before anything is made
    with editing(path) as file:
        if name not in file.ring.hashes and name not in file.ring.invitations:
            known = ", ".join([*file.ring.hashes][:20])
            raise UnknownKey(f"no key is named {name[:80]}", expected=known or None)
        file.remove({name})
        file.write()


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


def _parse(text: str, path: Path) -> KeyRing:
    hashes: dict[str, str] = {}
    admins = set()
    invitations: dict[str, Invitation] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, hashed, role = (*line.split(maxsplit=2), "", "")[:3]
        until = _UNTIL.fullmatch(role.strip())
        is_role = role.strip() in ("", _ADMIN) or until is not None
        if not (_NAME.fullmatch(name) and _HASHED.fullmatch(hashed) and is_role):
            # Not shown: it may be a key that somebody wrote there.
            raise HybridgeError(
                f"line {number} of {path} is no key",
                expected="a name, sha256:… with 64 digits, and for some the word admin",
                hint=f"hybridge keys add {path} NAME",
            )
        if name in hashes or name in invitations:
            raise HybridgeError(f"two keys of one name in {path}", saw=name)
        if until is not None:
            invitations[name] = Invitation(hashed, int(until[1]))
            continue
        hashes[name] = hashed
        if role:
            admins.add(name)
    return KeyRing(hashes, frozenset(admins), invitations)


class EditedFile:
    """A key file while it is locked: what is added and removed is stored by :meth:`write`.

    Attributes:
        ring: The keys as they were.
    """

    def __init__(self, file: Path, named: Path) -> None:
        self._file = file
        self._lines = _read(file).splitlines(keepends=True)
        self.ring = _parse("".join(self._lines), named)

    def add(self, name: str, role: str = "", *, key_bytes: int = _KEY_BYTES) -> str:
        """Add a line with a new key, and return the key.

        Raises:
            TooLarge: when there are too many lines.
        """
        if len(self.ring.hashes) + len(self.ring.invitations) >= MOST_KEYS:
            raise TooLarge(f"there are {MOST_KEYS} keys already", hint="removing some that are not used")
        key = secrets.token_urlsafe(key_bytes)
        if self._lines and not self._lines[-1].endswith("\n"):
            self._lines[-1] += "\n"
        self._lines.append(f"{name} {hash_key(key)} {role}".rstrip() + "\n")
        return key

    def remove(self, names: Collection[str]) -> None:
        """Remove the lines of these names; the others stay as they are."""
        self._lines = [line for line in self._lines if (line.split() or [""])[0] not in names]

    def write(self) -> None:
        """Store the lines."""
        _replace(self._file, "".join(self._lines))


@contextmanager
def editing(path: Path) -> Iterator[EditedFile]:
    """Lock the file (behind links) against other processes and read it; create it if it does not exist.

    Raises:
        HybridgeError: when it cannot be read or written, or is no key file.
    """
    file = Path(os.path.realpath(path))
    try:
        with _locked(file):
            yield EditedFile(file, path)
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
