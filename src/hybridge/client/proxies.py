"""Choose the proxy for a server: the caller's choice, else the environment's; none for this machine."""

from __future__ import annotations

import importlib.util
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.request import getproxies

import httpx

from ..errors import ClientError

#: The type of ``proxy=``; :class:`~hybridge.client.Client` documents it.
ProxyChoice = str | bool | None

#: Proxy URL schemes.  ``socks`` is another name of SOCKS version 5, which desktops write into ALL_PROXY.
_SCHEMES = {"http": "http", "https": "https", "socks": "socks5", "socks5": "socks5", "socks5h": "socks5"}

#: RFC 1918, addresses that providers and VPNs such as Tailscale share (RFC 6598), IPv4 and IPv6 link-local, and
#: IPv6's private addresses (RFC 4193).
_LAN = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"),
        *("fe80::/10", "fc00::/7"),
    )
)

#: Endings of names that no public name server has: mDNS's, home routers' (RFC 8375), Docker's and clouds',
#: Kubernetes'.
_LAN_NAMES = (".local", ".localdomain", ".lan", ".home.arpa", ".internal", ".svc")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy's URL without credentials, its user and password, who named it, and its protocol."""

    url: httpx.URL
    auth: tuple[str, str] | None = field(repr=False)
    source: str = field(default="", compare=False)

    @property
    def is_socks(self) -> bool:
        """Whether its protocol is SOCKS version 5, not HTTP."""
        return self.url.scheme == "socks5"


class Proxies:
    """Chooses the proxy for each URL.

    Args:
        choice: ``None``: the environment's proxy (``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``) for
            public addresses.  ``True``: the environment's also for addresses of a local network.  ``False``: no
            proxy.  A URL: this proxy, for every server except on this machine.
        environment: Function that returns the environment's proxies by scheme, as urllib does.
    """

    def __init__(
        self, choice: ProxyChoice = None, environment: Callable[[], Mapping[str, str]] | None = None
    ) -> None:
        self._choice = choice
        is_asked = choice is None or choice is True
        self._environment = dict((environment or getproxies)()) if is_asked else {}

    def of(self, url: httpx.URL) -> Proxy | None:
        """Return the proxy for ``url``; None for a direct connection.

        Raises:
            ClientError: for a proxy that cannot be used; it says where the proxy was set.
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
    """Return whether a host is this machine by its name or address."""
    ip = _ip(host)
    if ip is None:
        name = host.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost")
    return ip.is_loopback or ip.is_unspecified


def is_local(host: str) -> bool:
    """Return whether a host is local: a private or link-local address, a name without a dot, or of a local zone.

    Names are not resolved.
    """
    ip = _ip(host)
    if ip is None:
        name = host.lower().rstrip(".")
        return "." not in name or name.endswith(_LAN_NAMES)
    return any(ip.version == network.version and ip in network for network in _LAN)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def _is_excepted(url: httpx.URL, no_proxy: str) -> bool:
    """Return whether NO_PROXY names a URL's host: ``*``, names, suffixes, addresses, networks, also with port.

    Any other entry is ignored.
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
        if not 0 < (url.port or 1) < 1 << 16:
            url = httpx.URL()
    except (httpx.InvalidURL, UnicodeError):
        url = httpx.URL()
    if url.scheme not in _SCHEMES or not url.host:
        # The whole text is not shown: it may contain a password.
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
    return Proxy(httpx.URL(scheme=scheme, host=url.host, port=url.port), auth, source)
