"""Checks before the server starts: keys, certificate, and whether it is reachable without a key."""

from __future__ import annotations

import ipaddress
import logging
import ssl

from ...errors import HybridgeError
from ..middleware.key_file import KeyFile
from ..settings import Settings

log = logging.getLogger("hybridge.server")


def check_opening(settings: Settings) -> KeyFile | None:
    """Return the keys of a server that is about to start, or None; warn if other machines need no key.

    What pairing needs is made.

    Raises:
        HybridgeError: when the key file holds no key, or it or the certificate cannot be used.
    """
    if settings.pairing_folder is not None:
        settings.pairing_folder.prepare(has_certificate=settings.tls_cert is not None)
    if settings.certificate is not None:
        certificate, private_key = settings.certificate
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, private_key)
        except OSError as error:  # ssl.SSLError is one
            raise HybridgeError(
                "this certificate cannot be used",
                saw=f"{certificate}, {private_key}: {error.strerror or error}",
                expected="a certificate and its own key in PEM, without a passphrase",
            ) from None
    if settings.key_file is None:
        if settings.cloud is not None:
            log.info("%s asks who calls; who reaches this port past it needs no key", settings.cloud)
        elif not is_loopback(settings.address):
            log.warning(
                "every machine that can reach %s may use this server; --public --keys FILE asks for keys",
                settings.address,
            )
        return None
    keys = KeyFile(settings.key_file)
    if not keys.current.hashes and not settings.pairing:
        raise HybridgeError(
            f"{settings.key_file} holds no key, so every request would be refused",
            hint=f"hybridge keys add {settings.key_file} NAME",
        )
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address to listen on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
