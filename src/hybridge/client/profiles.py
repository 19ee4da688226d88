"""Profiles: servers that are stored under a name, with their addresses, certificate and key.

``Client("desktop")`` uses the profile ``desktop`` of the file or of the environment.  The file is the one that
``HYBRIDGE_PROFILES`` names, else ``$XDG_CONFIG_HOME/hybridge/profiles.json`` (``~/.config`` without the variable)::

    {"desktop": {"addresses": ["https://192.168.1.5:8000"], "certificate": "-----BEGIN CERTIFICATE-----…",
                 "key": "…"}}

In the environment, ``HYBRIDGE_PROFILE_DESKTOP_URL`` has the address (or several, with commas between them),
``HYBRIDGE_PROFILE_DESKTOP_KEY`` the key, and ``HYBRIDGE_PROFILE_DESKTOP_CERTIFICATE`` the certificate in PEM or the
path of its file.  A profile ``gpu-box`` is ``GPU_BOX`` there.  The environment has priority over the file.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import ssl
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..errors import ClientError
from .address import Address

#: Variable with the path of the file.
FILE_VARIABLE = "HYBRIDGE_PROFILES"

#: Beginning of the variables with single profiles.
VARIABLE_PREFIX = "HYBRIDGE_PROFILE_"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")

#: Most bytes of the file, and of a certificate.
_MOST_FILE_BYTES, _MOST_CERTIFICATE_BYTES = 1 << 20, 1 << 16

_FIELDS = ("addresses", "certificate", "key")


@dataclass(frozen=True, slots=True)
class Profile:
    """A server under a name.

    Attributes:
        name: 1 to 63 of ``A-Z a-z 0-9 _ -``.
        addresses: URLs of the server, or of several equal ones, without credentials.
        key: The API key; None if the server needs none.
        certificate: The server's certificate in PEM: no other is accepted.  None for the usual verification.
    """

    name: str
    addresses: tuple[str, ...]
    key: str | None = field(default=None, repr=False)
    certificate: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.addresses:
            raise ClientError(
                f"the profile {self.name} has no address", expected="http://host:port or https://host"
            )
        servers = self.servers()
        for address in servers:
            if address.authorization and not self.key:
                raise ClientError(
                    f"the profile {self.name} has a key in its address", expected="it under `key`", saw=address
                )
        if self.certificate is not None:
            _check_certificate(self.certificate, f"the profile {self.name}")
            if not all(address.url.scheme == "https" for address in servers):
                raise ClientError(
                    f"the profile {self.name} has a certificate", saw="an address without TLS", expected="https://"
                )

    def servers(self, api_key: str | None = None) -> list[Address]:
        """Return the addresses with the certificate and the key, or with ``api_key`` if the profile has none."""
        key = self.key or api_key
        try:
            return [Address.parse(text, key, certificate=self.certificate) for text in self.addresses]
        except ClientError as error:
            raise ClientError(
                f"the profile {self.name} is wrong: {error.what}", saw=error.saw, expected=error.expected
            ) from None


def addresses_of(server: str, api_key: str | None = None) -> list[Address]:
    """Return the addresses that a caller's ``server`` means: those of a profile, or the one URL that it is.

    Text without scheme, dot and colon is the name of a profile.

    Raises:
        ClientError: for an unknown profile, one that has a key where ``api_key`` is given too, an unusable file, or
            an invalid URL.  It shows neither keys nor the text, which may be a key that was pasted.
    """
    if not is_name(server):
        return [Address.parse(server, api_key)]
    profile = load(server)
    if profile.key is not None and api_key is not None and api_key.strip():
        raise ClientError(
            f"two keys for {profile.name}: the profile has one",
            saw="another one as api_key, --key or HYBRIDGE_KEY",
            expected="one of them",
        )
    return profile.servers(api_key)


def is_name(server: str) -> bool:
    """Return whether a caller's ``server`` is the name of a profile and not a URL."""
    return bool(server) and not set(server) & set(":./")


def check_name(name: str) -> None:
    """Raise ClientError for a text that cannot be the name of a profile."""
    if not _NAME.fullmatch(name):
        raise ClientError("this is not a profile's name", expected="1 to 63 of A-Z a-z 0-9 _ -, such as desktop")


def load(name: str) -> Profile:
    """Return the profile of a name.

    Raises:
        ClientError: when there is none, or the file or a variable is wrong.
    """
    found = _from_environment(name)
    if found is not None:
        return found
    stored = read_file()
    if name in stored:
        return stored[name]
    known = sorted({*stored, *_names_in_environment()})
    near = difflib.get_close_matches(name, known, n=1)
    raise ClientError(
        "no profile has this name",
        expected=", ".join(known) or f"a profile in {file_path()}, which `hybridge join` writes",
        hint=f"{near[0]}, or http:// in front of an address" if near else "http:// in front of an address",
    )


def load_all() -> list[Profile]:
    """Return all profiles of the file and of the environment, by name.

    Raises:
        ClientError: when the file or a variable is wrong.
    """
    profiles = dict(read_file())
    for name in _names_in_environment():
        of_environment = _from_environment(name)
        if of_environment is not None:
            same = next((stored for stored in profiles if _variable(stored) == _variable(name)), name)
            profiles[same] = of_environment
    return [profiles[name] for name in sorted(profiles)]


# ------------------------------------------------------------------------------------------- the environment


def _variable(name: str) -> str:
    return VARIABLE_PREFIX + name.upper().replace("-", "_")


def _names_in_environment() -> list[str]:
    names = [name for name in os.environ if name.startswith(VARIABLE_PREFIX) and name.endswith("_URL")]
    return [name.removeprefix(VARIABLE_PREFIX).removesuffix("_URL").lower() for name in names]


def _from_environment(name: str) -> Profile | None:
    """Return the profile that variables describe; None if there are none."""
    beginning = _variable(name)
    url, key, certificate = (os.environ.get(f"{beginning}_{part}") for part in ("URL", "KEY", "CERTIFICATE"))
    if not url:
        if key or certificate:
            raise ClientError(f"{beginning}_URL is not set, but its key or certificate is", expected="all of them")
        return None
    if certificate and not certificate.lstrip().startswith("-----BEGIN"):
        certificate = _read_certificate(Path(certificate), f"{beginning}_CERTIFICATE")
    addresses = tuple(part.strip() for part in url.split(",") if part.strip())
    return Profile(name, addresses, key or None, certificate or None)


def _read_certificate(path: Path, variable: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_CERTIFICATE_BYTES + 1).decode("ascii", "replace")
    except OSError as error:
        raise ClientError(
            f"the file that {variable} names cannot be read", saw=error.strerror, expected="a certificate in PEM"
        ) from None


def _check_certificate(pem: str, whose: str) -> None:
    try:
        if len(pem) > _MOST_CERTIFICATE_BYTES or pem.count("-----BEGIN CERTIFICATE-----") != 1:
            raise ValueError("not one certificate")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ValueError, OSError):  # ssl.SSLError is an OSError
        raise ClientError(
            f"{whose} has an unusable certificate", expected="one certificate in PEM: -----BEGIN CERTIFICATE-----"
        ) from None


# ------------------------------------------------------------------------------------------- the file


def file_path() -> Path:
    """Return where the profiles are stored; the file need not exist."""
    if path := os.environ.get(FILE_VARIABLE):
        return Path(path).expanduser()
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    # The specification of XDG: a relative path is ignored.
    base = Path(configured) if Path(configured).is_absolute() else Path("~/.config").expanduser()
    return base / "hybridge" / "profiles.json"


def read_file() -> dict[str, Profile]:
    """Return the profiles of the file by name; none if it does not exist.

    Raises:
        ClientError: when others than its owner may read it, or it is not what this module writes.
    """
    path = file_path()
    try:
        with path.open("rb") as file:
            if os.name == "posix":
                _check_mode(path, os.fstat(file.fileno()).st_mode)
            content = file.read(_MOST_FILE_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ClientError("the profiles cannot be read", saw=f"{path}: {error.strerror}") from None
    if len(content) > _MOST_FILE_BYTES:
        raise ClientError(f"{path} has no profiles", saw="more than 1 MiB", expected="JSON")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "no text"
        raise ClientError(
            f"{path} is not JSON", saw=where, expected="an object with a profile for each name"
        ) from None
    if not isinstance(document, dict):
        raise ClientError(f"{path} is not what is expected", expected="an object of profiles")
    return {name: _read_profile(name, entry, path) for name, entry in document.items()}


def _check_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(mode) & 0o077:
        raise ClientError(
            f"{path} has keys that others on this machine may read",
            saw=f"mode {stat.S_IMODE(mode):04o}",
            expected="0600",
            hint=f"chmod 600 {path}",
        )


def _read_profile(name: str, entry: Any, path: Path) -> Profile:
    if not _NAME.fullmatch(name) or not isinstance(entry, dict):
        raise ClientError(
            f"{path} has an entry that is no profile", expected="a name, and an object with addresses"
        )
    for unknown in entry.keys() - set(_FIELDS):
        near = difflib.get_close_matches(unknown, _FIELDS, n=1)
        raise ClientError(
            f"the profile {name} of {path} has a field that this version does not know",
            expected=", ".join(_FIELDS),
            hint=near[0] if near else None,
        )
    addresses, certificate, key = (entry.get(part) for part in _FIELDS)
    is_right = isinstance(addresses, list) and all(isinstance(one, str) for one in addresses)
    if not is_right or not all(one is None or isinstance(one, str) for one in (certificate, key)):
        raise ClientError(
            f"the profile {name} of {path} is wrong",
            expected="`addresses`, a list of texts; `certificate` and `key`, texts",
        )
    return Profile(name, tuple(cast("list[str]", addresses)), key or None, certificate or None)


def save(profile: Profile) -> Path:
    """Add a profile to the file, or replace the one of its name, and return the file's path.

    Raises:
        ClientError: when the file cannot be read or written.
    """
    with _writing() as path:
        return _write(path, {**read_file(), profile.name: profile})


def check_writable() -> None:
    """Raise ClientError if :func:`save` could not write the file."""
    with _writing() as path:
        tempfile.TemporaryFile(dir=path.parent).close()


def remove(name: str) -> Path:
    """Remove a profile from the file, and return the file's path.

    Raises:
        ClientError: when the file has none of this name, or cannot be written.
    """
    if not file_path().exists():
        raise ClientError("no profile is stored", expected=f"one in {file_path()}, which `hybridge join` writes")
    with _writing() as path:
        stored = read_file()
        if name not in stored:
            raise ClientError(
                "the file has no profile of this name", expected=", ".join(stored) or None, saw=file_path()
            )
        del stored[name]
        return _write(path, stored)


@contextlib.contextmanager
def _writing() -> Iterator[Path]:
    """Give the file behind links; its folder exists, and other processes that write wait until the block ends."""
    path = Path(os.path.realpath(file_path()))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.parent):
            yield path
    except OSError as error:
        raise ClientError("the profiles cannot be written", saw=f"{path}: {error.strerror}") from None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder, so that of two programs that store a profile neither undoes what the other did."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, profiles: Mapping[str, Profile]) -> Path:
    """Write a new file with mode 0600 and rename it, so that readers see the old one or the new one, whole."""
    document = {
        one.name: {
            "addresses": list(one.addresses),
            **({"certificate": one.certificate} if one.certificate else {}),
            **({"key": one.key} if one.key else {}),
        }
        for one in profiles.values()
    }
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # which opens it as 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(document, indent=2).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    return path
