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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...errors import HybridgeError, KeyExists, RequestError, TooLarge, UnknownKey

log = logging.getLogger("hybridge.server")

#: 256 bits: too many to guess.
_KEY_BYTES = 32

#: Longer keys are not ours and are not hashed.
_LONGEST_KEY = 256

#: Most bytes of a file of keys; a larger one is another file that was named by mistake.
_MOST_BYTES = 16 * 2**20

#: Most keys to which another is added: each request is compared with all of them.
MOST_KEYS = 4096

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_HASHED = re.compile(r"sha256:[0-9a-f]{64}")

#: The word behind the hash of a key that may manage keys.
_ADMIN = "admin"


def hash_key(key: str) -> str:
    """Return the hash of a key, which is all that is stored.

    One round of SHA-256, without salt: both exist because people choose passwords that can be guessed.  These keys
    are 256 random bits that only :func:`add_key` makes, so a stolen file gives nothing to guess with, equal keys do
    not occur, and each request costs the server a microsecond instead of the tenth of a second of a slow hash.
    """
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of a server at one moment.

    Attributes:
        hashes: The hash of each key, by name.
        admins: The names of the keys that may manage keys.
    """

    hashes: dict[str, str]
    admins: frozenset[str] = frozenset()

    @classmethod
    def read(cls, path: Path) -> KeyRing:
        """Read lines of ``name sha256:…`` or ``name sha256:… admin``; empty lines and ``#`` lines are ignored.

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

    @property
    def current(self) -> KeyRing:
        """The keys now.  While the file cannot be read, they stay as they were, and the log says so once."""
        version = _version(self.path)
        if version != self._seen:
            try:
                self._ring = KeyRing.read(self.path)
            except HybridgeError as error:
                log.error("the keys stay as they were: %s", error)
            else:
                log.info("the keys were read again: %d", len(self._ring.hashes))
            self._seen = version
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
    key = secrets.token_urlsafe(_KEY_BYTES)
    with _editing(path) as file:
        text = _read(file)
        ring = _parse(text, path)
        if name in ring.hashes:
            raise KeyExists(f"a key is named {name} already", hint="another name, or removing that key first")
        if len(ring.hashes) >= MOST_KEYS:
            raise TooLarge(f"there are {MOST_KEYS} keys already", hint="removing some that are not used")
        end = "" if not text or text.endswith("\n") else "\n"
        role = f" {_ADMIN}" if is_admin else ""
        _replace(file, f"{text}{end}{name} {hash_key(key)}{role}\n")
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
    text = _read(path)  # whose absence is an error, before anything is made
    with _editing(path) as file:
        text = _read(file)
        names = _parse(text, path).hashes
        if name not in names:
            raise UnknownKey(f"no key is named {name[:80]}", expected=", ".join([*names][:20]) or None)
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


def _parse(text: str, path: Path) -> KeyRing:
    hashes: dict[str, str] = {}
    admins = set()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, *rest = line.split()
        is_role = rest[1:] in ([], [_ADMIN])
        if not rest or not is_role or not _NAME.fullmatch(name) or not _HASHED.fullmatch(rest[0]):
            # Not shown: it may be a key that somebody wrote there.
            raise HybridgeError(
                f"line {number} of {path} is no key",
                expected="a name, sha256:… with 64 digits, and for some the word admin",
                hint=f"hybridge keys add {path} NAME",
            )
        if name in hashes:
            raise HybridgeError(f"two keys of one name in {path}", saw=name)
        hashes[name] = rest[0]
        if rest[1:]:
            admins.add(name)
    return KeyRing(hashes, frozenset(admins))


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
