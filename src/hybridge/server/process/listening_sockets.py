"""Sockets to listen on, for both versions of IP where the host has both, and the URLs of the server."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ...errors import HybridgeError
from .server import bind

#: The address of every interface, in both versions of IP.
_ANY = ("0.0.0.0", "::")  # noqa: S104 - compared with what was asked for

#: Interfaces to this machine's own containers and virtual machines; other machines cannot reach them.
_INNER_INTERFACES = ("docker", "br-", "veth", "virbr", "cni", "flannel", "lxc", "lxdbr")

#: Errors of a host that lacks one of the versions of IP.
_NO_SUCH_FAMILY = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

#: Attempts with port 0: the first socket gets a free port, which may be taken for the others.
_TRIES = 16


@contextmanager
def opened(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Bind a socket for each address of ``host``, not listening yet; close them after the block.

    Args:
        host: A name or an address; ``localhost`` and ``::`` mean IPv4 as well as IPv6.
        port: The same for all sockets; 0 takes a free one.

    Raises:
        HybridgeError: when the name is unknown, or an address is taken, not this machine's, or forbidden.
    """
    for last in [False] * (_TRIES - 1) + [True]:
        with ExitStack() as stack:
            try:
                sockets = [stack.enter_context(one) for one in _bound(host, port)]
            except OSError as error:
                if port == 0 and error.errno == errno.EADDRINUSE and not last:
                    continue
                raise refusal(host, port, error) from None
            yield sockets
            return


def refusal(host: str, port: int, error: OSError) -> HybridgeError:
    """Return the error for an address on which no socket can listen."""
    hints = {
        errno.EADDRINUSE: "--port 0 for a free one",
        errno.EACCES: "a port from 1024 on; smaller ones are for the superuser",
        errno.EADDRNOTAVAIL: "--host 127.0.0.1, or an address of this machine",
    }
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return HybridgeError(f"cannot listen on {where}", saw=error.strerror, hint=hints.get(error.errno or 0))


def _bound(host: str, port: int) -> Iterator[socket.socket]:
    failed: OSError | None = None
    found = False
    for address in _addresses(host):
        try:
            one = bind(address, port)
        except OSError as error:
            if error.errno not in _NO_SUCH_FAMILY:
                raise
            failed = error
            continue
        found, port = True, one.getsockname()[1]
        yield one
    if failed is not None and not found:
        raise failed


def _addresses(host: str) -> list[str]:
    if host == "localhost":  # in containers often the name of one of both only
        return ["127.0.0.1", "::1"]
    if ":" in host:
        return [host]
    infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


def hosts_elsewhere(sockets: Sequence[socket.socket]) -> list[str]:
    """Return this machine's addresses under which other machines reach the sockets."""
    found: list[str] = []
    for one in sockets:
        host = one.getsockname()[0]
        if host in _ANY:
            both = one.family == socket.AF_INET6
            found += [str(address) for address in _of_this_machine() if both or address.version == 4]
        elif not ipaddress.ip_address(host).is_loopback:
            found.append(host)
    return list(dict.fromkeys(found))


def addresses_elsewhere(sockets: Sequence[socket.socket], *, scheme: str = "http") -> list[str]:
    """Return ``http://host:port`` for other machines, if a socket listens on every interface."""
    found = []
    for one in sockets:
        host, port = one.getsockname()[:2]
        if host in _ANY:
            both = one.family == socket.AF_INET6
            found += [
                f"{scheme}://[{address}]:{port}" if address.version == 6 else f"{scheme}://{address}:{port}"
                for address in _of_this_machine()
                if both or address.version == 4
            ]
    return found


def _of_this_machine() -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return this machine's addresses that other machines can reach, IPv4 first."""
    import psutil

    up = {name for name, about in psutil.net_if_stats().items() if about.isup}
    found = [
        ipaddress.ip_address(address.address)
        for name, addresses in psutil.net_if_addrs().items()
        if name in up and not name.startswith(_INNER_INTERFACES)
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    ]
    usable = {address for address in found if not address.is_loopback and not address.is_link_local}
    return sorted(usable, key=lambda address: (address.version, int(address)))
