"""Tells the local network about a server by mDNS (DNS-SD), for ``hybridge find``.

What is told is public and proves nothing: address, port, whether it is HTTPS, and the beginning of the
certificate's SHA-256, by which a client finds the certificate that it has stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import HybridgeError
from ...protocol.pairing_link import plain_name

log = logging.getLogger("hybridge.server")

#: The service's type, of which programs look for instances.
SERVICE = "_hybridge._tcp.local."

#: Hexadecimal digits of the certificate's SHA-256 that are told.
ID_DIGITS = 16


@contextlib.contextmanager
def announced(hosts: Sequence[str], port: int, certificate: Path | None) -> Iterator[None]:
    """Announce a server until the block ends; a failure is logged, and the server runs without.

    Args:
        hosts: Its addresses; only the networks that they belong to are told.
        port: Its port.
        certificate: The file of its certificate in PEM; None without TLS.

    Raises:
        HybridgeError: when zeroconf is not installed, or other machines cannot reach the server.
    """
    try:
        from zeroconf import ServiceInfo, Zeroconf
    except ModuleNotFoundError:
        raise HybridgeError("--announce needs zeroconf", hint="pip install 'hybridge[server,pairing]'") from None
    if not hosts:
        raise HybridgeError(
            "--announce is for other machines", saw="an address of this machine alone", hint="--public"
        )
    identity = "" if certificate is None else fingerprint_of(certificate.read_text())[:ID_DIGITS]
    name = plain_name(socket.gethostname()) or "server"
    about = ServiceInfo(
        SERVICE,
        f"{name}-{identity[:4] or port}.{SERVICE}",
        port=port,
        properties={"v": "1", "tls": "1" if certificate else "0", "id": identity},
        server=f"{name}.local.",
        parsed_addresses=list(hosts),
    )
    opened: list[Zeroconf] = []

    def register() -> None:
        try:
            opened.append(Zeroconf(interfaces=list(hosts)))
            opened[0].register_service(about, allow_name_change=True)
        except Exception as error:  # whatever a network does, the server works without
            log.warning("this server cannot be announced: %s: %s", type(error).__name__, error)

    # Beside the start of the server: it takes some seconds to make sure that the name is free.
    thread = threading.Thread(target=register, name="hybridge-announce", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        for one in opened:
            with contextlib.suppress(Exception):
                one.close()  # which takes the announcement back


def fingerprint_of(pem: str) -> str:
    """Return the SHA-256 of the first certificate in PEM, in hexadecimal digits."""
    return hashlib.sha256(first_certificate(pem)).hexdigest()


def first_certificate(pem: str) -> bytes:
    """Return the first certificate of a chain in PEM, in DER.

    Raises:
        ValueError: when there is none.
    """
    end = "-----END CERTIFICATE-----"
    return ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERTIFICATE-----") : pem.index(end) + len(end)])
