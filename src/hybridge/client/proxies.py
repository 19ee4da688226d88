"""Which server is called through a proxy: the caller's word, else the environment's, and never for this machine."""

from __future__ import annotations

import importlib.util
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.request import getproxies

import httpx

from ..errors import ClientError

#: What ``proxy=`` may be; :class:`~hybridge.client.Client` documents it.
ProxyChoice = str | bool | None

#: Other spellings of SOCKS version 5; desktops write the first one into ALL_PROXY.
_SCHEMES = {"http": "http", "https": "https", "socks": "socks5", "socks5": "socks5", "socks5h": "socks5"}

#: RFC 1918, IPv4 and IPv6 link-local, and IPv6's private addresses (RFC 4193).
_LAN = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fe80::/10", "fc00::/7")
)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy's URL without credentials, its user and password, and whether it speaks SOCKS."""

    url: httpx.URL
    auth: tuple[str, str] | None = field(repr=False)

    @property
    def is_socks(self) -> bool:
        """Whether it speaks SOCKS version 5, not HTTP."""
        return self.url.scheme == "socks5"


class Proxies:
    """Says for each URL which proxy to take.

    Args:
        choice: ``None``: the environment's (``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``) for
            public addresses.  ``True``: the environment's also for addresses of a local network.  ``False``: none.
            A URL: this one, for every server but one on this machine.
        environment: Gives the environment's proxies by scheme, as urllib does.
    """

    def __init__(
        self, choice: ProxyChoice = None, environment: Callable[[], Mapping[str, str]] | None = None
    ) -> None:
        self._choice = choice
        is_asked = choice is None or choice is True
        self._environment = dict((environment or getproxies)()) if is_asked else {}

    def of(self, url: httpx.URL) -> Proxy | None:
        """The proxy for ``url``; None for a direct connection.

        Raises:
            ClientError: for a proxy that cannot be used; it says where that was asked for.
        """
        if is_loopback(url.host):
            return None
        if isinstance(self._choice, str):
            return _read(self._choice, "proxy=")
        if self._choice is None and is_local(url.host):
            return None
        if _is_excepted(url, self._environment.get("no", "")):
            return None
        for scheme in (url.scheme, "all"):
            if text := self._environment.get(scheme, "").strip():
                return _read(text, f"the environment's {scheme.upper()}_PROXY")
        return None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name or address."""
    ip = _ip(host)
    if ip is None:
        name = host.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost")
    return ip.is_loopback or ip.is_unspecified


def is_local(host: str) -> bool:
    """Whether a host is in the local network: a private or link-local address, ``.local``, a name without a dot.

    Names are not looked up.
    """
    ip = _ip(host)
    if ip is None:
        name = host.lower().rstrip(".")
        return "." not in name or name.endswith(".local")
    return any(ip.version == network.version and ip in network for network in _LAN)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def _is_excepted(url: httpx.URL, no_proxy: str) -> bool:
    """Whether NO_PROXY names a URL's host: ``*``, names, suffixes, addresses, networks, each with a port or not.

    An entry that is none of these names nothing.
    """
    return any(_names(entry, url) for entry in no_proxy.replace(",", " ").split())


def _names(entry: str, url: httpx.URL) -> bool:
    if entry == "*":
        return True
    entry = entry.rpartition("://")[2].lower()
    ip = _ip(url.host)
    try:
        network = ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    else:
        return ip is not None and ip.version == network.version and ip in network
    host, colon, port = entry.rpartition(":")
    if colon and port.isdecimal():
        if int(port[:6]) != (url.port or {"http": 80, "https": 443}.get(url.scheme)):
            return False
        entry = host
    if ip is not None:
        return _ip(entry) == ip
    suffix = entry.removeprefix("*").strip(".")
    name = url.host.lower().rstrip(".")
    return bool(suffix) and (name == suffix or name.endswith("." + suffix))


def _read(text: str, source: str) -> Proxy:
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
    except (httpx.InvalidURL, UnicodeError):
        url = httpx.URL()
    if url.scheme not in _SCHEMES or not url.host:
        # Not shown whole: a password may be in it.
        raise ClientError(
            f"{source} is not a proxy's address",
            saw=f"{url.scheme}://…" if url.scheme and url.scheme not in _SCHEMES else None,
            expected="http://host:port, https://host:port or socks5://host:port",
            hint="NO_PROXY with this server's name, or proxy=False, if no proxy is wanted",
        )
    scheme = _SCHEMES[url.scheme]
    if scheme == "socks5" and importlib.util.find_spec("socksio") is None:
        raise ClientError(
            f"{source} names a SOCKS proxy, which needs the package socksio", hint="`pip install 'httpx[socks]'`"
        )
    auth = (url.username, url.password) if url.userinfo else None
    return Proxy(httpx.URL(scheme=scheme, host=url.host, port=url.port), auth)
