"""Servers that announce themselves in the local network by mDNS.

Everybody in the network can announce anything, so nothing here is trusted: the id of an announcement only finds the
profile whose certificate may be meant, and :func:`moved` checks that certificate before it stores a new address.
"""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ClientError, ServerUnreachable
from . import profiles
from .profiles import Profile

_SERVICE = "_hybridge._tcp.local."

#: Most announcements that are looked at, and most characters of a name.
_MOST, _LONGEST = 64, 64

#: Milliseconds in which an announcement has to be complete; seconds to connect.
_PATIENCE_MS, _CONNECT_S = 1500, 5.0

#: Hexadecimal digits that an id has at least, to find a profile.
_ID_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a server, or anybody else, says about itself.

    Attributes:
        name: Its name; printable ASCII.
        urls: Its addresses.
        identity: The beginning of its certificate's SHA-256, in hexadecimal digits; empty if it does not say it.
    """

    name: str
    urls: tuple[str, ...]
    identity: str

    def profile(self, stored: Sequence[Profile]) -> Profile | None:
        """Return the stored profile whose certificate this may be."""
        if len(self.identity) < _ID_DIGITS:
            return None
        return next((one for one in stored if _fingerprint(one).startswith(self.identity)), None)


def find(seconds: float = 3.0, *, interfaces: Sequence[str] | None = None) -> list[Announcement]:
    """Return the announcements that are heard within some seconds, by name.

    Args:
        seconds: How long to listen.
        interfaces: Addresses of the network interfaces to listen on; all if None.

    Raises:
        ClientError: when zeroconf is not installed, or the network cannot be listened to.
    """
    try:
        from zeroconf import InterfaceChoice, ServiceBrowser, Zeroconf
    except ModuleNotFoundError:
        raise ClientError("looking for servers needs zeroconf", hint="pip install zeroconf") from None
    names: list[str] = []

    def heard(zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        if name not in names and len(names) < _MOST:
            names.append(name)

    try:
        with Zeroconf(interfaces=InterfaceChoice.All if interfaces is None else list(interfaces)) as zeroconf:
            ServiceBrowser(zeroconf, _SERVICE, handlers=[heard])
            time.sleep(seconds)
            told = [zeroconf.get_service_info(_SERVICE, name, timeout=_PATIENCE_MS) for name in list(names)]
    except OSError as error:
        raise ClientError("the network cannot be listened to", saw=error.strerror or str(error)) from None
    found = [_read(about) for about in told if about is not None]
    return sorted((one for one in found if one.urls), key=lambda one: one.name)


def moved(announcement: Announcement, profile: Profile) -> Profile:
    """Store the address of an announcement for a profile, if the server there shows the profile's certificate.

    Raises:
        ServerUnreachable: when no address does.
    """
    assert profile.certificate is not None  # noqa: S101 - by which it was found
    pinned = ssl.PEM_cert_to_DER_cert(profile.certificate)
    for url in announcement.urls:
        host, _, port = url.removeprefix("https://").rpartition(":")
        try:
            shown = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=_CONNECT_S)
        except (OSError, ValueError):
            continue
        if url.startswith("https://") and ssl.PEM_cert_to_DER_cert(shown) == pinned:
            changed = replace(profile, addresses=(url,))
            profiles.save(changed)
            return changed
    raise ServerUnreachable(
        f"what is announced as {profile.name} does not show its certificate",
        saw=", ".join(announcement.urls),
        hint="`hybridge pair` on the server, if its certificate was replaced",
    )


def _read(about: Any) -> Announcement:
    properties = {_plain(key): _plain(value or b"") for key, value in (about.properties or {}).items()}
    scheme = "https" if properties.get("tls") == "1" else "http"
    hosts = [host for host in about.parsed_addresses() if "%" not in host][:8]
    names = [f"[{host}]" if ":" in host else host for host in hosts]
    urls = tuple(f"{scheme}://{name}:{about.port}" for name in names)
    identity = properties.get("id", "").lower()
    is_id = set(identity) <= set("0123456789abcdef")
    return Announcement(_plain(about.name.removesuffix(f".{_SERVICE}")), urls, identity if is_id else "")


def _plain(text: str | bytes) -> str:
    """Return printable ASCII, cut to some length: a name may contain anything, also codes for terminals."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return "".join(character if " " <= character <= "~" else "?" for character in text[:_LONGEST])


def _fingerprint(profile: Profile) -> str:
    if profile.certificate is None:
        return ""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(profile.certificate)).hexdigest()
