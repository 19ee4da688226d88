"""Pairing: turn a link from ``hybridge pair`` into a profile.

The fingerprint in the link is compared with the server's certificate before anything secret is sent.  The token
then goes through a connection that accepts this certificate alone, so it reaches nobody else.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import ssl
import time
from dataclasses import replace
from typing import Any

import httpx

from ..errors import BadAnswer, ClientError, ServerRefused, ServerUnreachable
from ..protocol import HttpResponse, read_failure
from ..protocol.pairing_link import PairingLink, plain_name
from . import profiles, transport_errors
from .address import Address
from .network import Network, network_to
from .profiles import Profile

#: Seconds to connect, and for the whole exchange.
_CONNECT_S, _EXCHANGE_S = 10.0, 30.0

#: Most bytes of the answer that are read.
_MOST_BYTES = 1 << 16

#: The name of the profile if neither the caller nor the link has one.
_DEFAULT_NAME = "server"


def join(link: str, name: str | None = None, *, machine: str | None = None) -> Profile:
    """Answer an invitation, store the server as a profile, and return the profile.

    Args:
        link: What ``hybridge pair`` printed on the server.
        name: The profile's name; the server's own if None.
        machine: This machine's name, which the key gets on the server; the host name if None.

    Raises:
        RequestError: for a link that is none, or not whole.
        ClientError: ServerUnreachable when the server cannot be reached or shows another certificate than the link
            says; ServerRefused when the invitation was used or is over; ClientError when the profile's name belongs
            to another server, or the profiles cannot be read or written.
    """
    invitation = PairingLink.parse(link)
    chosen = name or invitation.name or _DEFAULT_NAME
    profiles.check_name(chosen)
    # Before the token is used up: a key that cannot be stored would be lost.
    stored = profiles.read_file().get(chosen)
    profiles.check_writable()
    address = replace(Address.parse(invitation.url), certificate=fetch_certificate(invitation))
    if stored is not None and stored.certificate != address.certificate:
        raise ClientError(
            f"the profile {chosen} is another server's",
            saw=", ".join(map(str, stored.servers())),
            hint=f"--name with another name, or `hybridge profiles remove {chosen}` first",
        )
    key = _key_for(invitation, address, machine or plain_name(socket.gethostname()) or "client")
    profile = Profile(chosen, (invitation.url,), key, address.certificate)
    profiles.save(profile)
    return profile


def fetch_certificate(invitation: PairingLink) -> str:
    """Return the server's certificate in PEM, if it is the one that the link names.

    Raises:
        ServerUnreachable: when nobody answers, or the certificate is another one.
    """
    try:
        pem = ssl.get_server_certificate((invitation.host, invitation.port), timeout=_CONNECT_S)
        seen = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ServerUnreachable(
            f"{invitation.url} cannot be reached",
            saw=str(error) or type(error).__name__,
            hint="the same network for both machines, a server that runs with --public --pairing, and a firewall"
            " that lets its port through",
        ) from None
    if not hmac.compare_digest(seen, invitation.fingerprint):
        raise ServerUnreachable(
            f"{invitation.url} is not the server that made this link: its certificate differs; nothing was sent",
            saw=f"SHA-256 {seen.hex()[:16]}…",
            expected=f"{invitation.fingerprint.hex()[:16]}…",
            hint="a new link from `hybridge pair`, if the certificate was replaced; else another machine answers",
        )
    return pem


def _key_for(invitation: PairingLink, address: Address, machine: str) -> str:
    """Return the key that the server gives for the token."""
    body = json.dumps({"token": invitation.token, "name": machine}).encode()
    request = httpx.Request(
        "POST",
        address.resolve("/v1/pair"),
        headers={"content-type": "application/json", "content-length": str(len(body))},
        content=body,
        extensions={
            "timeout": httpx.Timeout(_EXCHANGE_S, connect=_CONNECT_S).as_dict(),
            "ends_at": time.monotonic() + _EXCHANGE_S,
        },
    )
    network = network_to([address], Network, False, None)
    try:
        response = network.handle_request(request)
        content = b""
        for part in response.stream:  # type: ignore[union-attr] # a response of Network is read piece by piece
            content += part
            if len(content) > _MOST_BYTES:
                raise BadAnswer(f"{address} answered with too much", saw=f"more than {_MOST_BYTES} bytes")
    except httpx.RequestError as error:
        raise transport_errors.loss(error, address) from None
    finally:
        network.close()
    answer = HttpResponse(response.status_code, dict(response.headers), content)
    if not response.is_success:
        raise _refusal(answer, address)
    return _read_key(content, address)


def _refusal(answer: HttpResponse, address: Address) -> ClientError:
    error = read_failure(answer)
    if isinstance(error, ServerRefused):
        hint = "a server that runs with --pairing" if answer.status in (401, 404) else None
        return ServerRefused(
            f"{address} did not accept this invitation: {error.what}",
            status=error.status,
            code=error.code,
            hint=hint,
        )
    return transport_errors.named(error, address)


def _read_key(content: bytes, address: Address) -> str:
    try:
        document: Any = json.loads(content)
        key = document["key"]
        Address.parse(str(address), key)
        if not isinstance(key, str) or not key:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ClientError):
        raise BadAnswer(f"{address} answered without a usable key", expected="JSON with `key`") from None
    return key
