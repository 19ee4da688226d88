"""The certificates that a client trusts."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import httpx

from ..errors import ClientError

#: The type of ``verify=``; :class:`~hybridge.client.Client` documents it.
Verify = ssl.SSLContext | str | os.PathLike[str] | bool | None

#: Variable with a file or folder of certificates; it has priority over httpx's SSL_CERT_FILE and SSL_CERT_DIR.
CA_VARIABLE = "HYBRIDGE_CA"


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
