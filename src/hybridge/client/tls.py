"""The certificates that a client trusts."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from ..errors import ClientError
from .address import Address, Origin, origin_of

#: The type of ``verify=``; :class:`~hybridge.client.Client` documents it.
Verify = ssl.SSLContext | str | os.PathLike[str] | bool | None

#: Variable with a file or folder of certificates; it has priority over httpx's SSL_CERT_FILE and SSL_CERT_DIR.
CA_VARIABLE = "HYBRIDGE_CA"


#: OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which :mod:`ssl` does not name.
_NO_CHECK_TIME = 0x200000


class Trust:
    """The context that verifies the certificate of each server.

    Args:
        usual: For all servers whose certificate is not pinned.
        pinned: For the others.  Each has a context of its own: in a shared one, where host names are not checked,
            the certificate of one server would do for another.
    """

    def __init__(self, usual: ssl.SSLContext, pinned: Mapping[Origin, ssl.SSLContext] | None = None) -> None:
        self.usual = usual
        self._pinned = dict(pinned or {})

    @classmethod
    def to(cls, servers: Sequence[Address], verify: Verify, *, is_needed: bool = False) -> Trust:
        """Return the contexts for the given servers.

        Args:
            servers: Those that will be called.
            verify: As for :func:`trust`, for servers without a pinned certificate.
            is_needed: Whether there will be TLS to others, such as a proxy.

        Raises:
            ClientError: as :func:`trust`.
        """
        pinned = {
            origin_of(server.url): pinning(server.certificate)
            for server in servers
            if server.certificate is not None
        }
        is_needed |= any(one.url.scheme == "https" and one.certificate is None for one in servers)
        return cls(trust(verify, is_needed=is_needed), pinned)

    def of(self, url: httpx.URL) -> ssl.SSLContext:
        """Return the context for a connection to a URL."""
        return self._pinned.get(origin_of(url), self.usual)


def pinning(certificate: str) -> ssl.SSLContext:
    """Return a context that accepts this certificate (PEM) alone, under any host name and at any time.

    Neither the name nor the dates would add anything: whoever has the certificate's private key is the server that
    was meant, and a wrong clock must not lock the user out.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    context.load_verify_locations(cadata=certificate)
    return context


def trust(verify: Verify, *, is_needed: bool) -> ssl.SSLContext:
    """Return the context that verifies servers' certificates.

    Args:
        verify: The caller's context, a file or folder of certificates that are trusted instead of the public ones,
            False to trust any server, or None for the environment's setting.
        is_needed: Whether there can be a TLS connection at all.

    Raises:
        ClientError: when the file does not exist or contains no certificate.
    """
    if isinstance(verify, ssl.SSLContext):
        return verify
    if verify is False:
        return httpx.create_ssl_context(verify=False)
    if isinstance(verify, (str, os.PathLike)):
        return _trusting(Path(verify), "verify=")
    if not is_needed:
        # Reading the certificate store takes 35 ms, a tenth of a decode, and remote_decode would do it for every
        # call.  If there is a TLS connection nevertheless, a context without roots trusts no server.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for variable in (CA_VARIABLE, "SSL_CERT_FILE", "SSL_CERT_DIR"):
        if path := os.environ.get(variable):
            return _trusting(Path(path), f"the environment's {variable}")
    return httpx.create_ssl_context()


def _trusting(path: Path, source: str) -> ssl.SSLContext:
    try:
        if path.is_dir():
            return ssl.create_default_context(capath=str(path))
        return ssl.create_default_context(cafile=str(path))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ClientError(
            f"{source} holds no certificates",
            saw=f"{path}: {error}",
            expected="a PEM file, or a folder of them as `openssl rehash` makes it",
        ) from None
