"""Which certificates are trusted."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import httpx

from ..errors import ClientError

#: What ``verify=`` may be; :class:`~hybridge.client.Client` documents it.
Verify = ssl.SSLContext | str | os.PathLike[str] | bool | None

#: Names a file or a folder of certificates, before httpx's own SSL_CERT_FILE and SSL_CERT_DIR.
CA_VARIABLE = "HYBRIDGE_CA"


def trust(verify: Verify, *, is_needed: bool) -> ssl.SSLContext:
    """The context that verifies servers' certificates.

    Args:
        verify: A context of the caller's, a file or folder of certificates that are trusted instead of the public
            ones, False to trust whoever answers, or None for what the environment says.
        is_needed: Whether there can be a connection with TLS at all.

    Raises:
        ClientError: when there is no such file, or no certificate in it.
    """
    if isinstance(verify, ssl.SSLContext):
        return verify
    if verify is False:
        return httpx.create_ssl_context(verify=False)
    if isinstance(verify, (str, os.PathLike)):
        return _trusting(Path(verify), "verify=")
    if not is_needed:
        # Reading the certificate store takes 35 ms, a tenth of a decode, and remote_decode would do it for every
        # call.  A context without roots trusts nobody, should a connection with TLS arise.
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
