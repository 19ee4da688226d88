"""The link by which a server invites another machine: ``hybridge://host:port/#f=…,t=…,n=…``.

``f`` is the SHA-256 of the server's certificate (DER), ``t`` a token of 128 bits that is good once, both in
base64url without padding; ``n``, which may be absent, is the server's name.  They are separated by commas, because
a shell would cut an unquoted link at ``&``, which is read, too.  What is behind ``#`` is not sent to any server.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..errors import RequestError

_SCHEME = "hybridge"

#: Bytes of a SHA-256, and of a token.
FINGERPRINT_BYTES, TOKEN_BYTES = 32, 16

#: Most characters of a link: a host name has at most 253.
_LONGEST = 512

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}|[0-9A-Fa-f:.]{2,45}")


@dataclass(frozen=True, slots=True)
class PairingLink:
    """An invitation.

    Attributes:
        host: The server's address or name.
        port: Its port.
        fingerprint: SHA-256 of its certificate, 32 bytes.
        token: What the server gives a key for, once.
        name: The server's name, for the profile; None if it has none that is plain.
    """

    host: str
    port: int
    fingerprint: bytes
    token: str = field(repr=False)
    name: str | None = None

    @property
    def url(self) -> str:
        """The server's address: ``https://host:port``."""
        return f"https://{self._authority}"

    @property
    def _authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        parts = [f"f={_encoded(self.fingerprint)}", f"t={self.token}", *([f"n={self.name}"] if self.name else [])]
        return f"{_SCHEME}://{self._authority}/#{','.join(parts)}"

    @classmethod
    def parse(cls, text: str) -> PairingLink:
        """Read a link.

        Raises:
            RequestError: when it is not one, or not whole.  It does not show the token.
        """
        text = "".join(text.split())  # terminals break long lines
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        if parts.scheme != _SCHEME or len(text) > _LONGEST:
            raise RequestError(
                "this is not a pairing link",
                expected=f"{_SCHEME}://host:port/#f=…,t=…, as `hybridge pair` prints it",
            )
        given = dict(part.split("=", 1) for part in re.split("[,&]", parts.fragment) if "=" in part)
        fingerprint, token = _decoded(given.get("f", "")), given.get("t", "")
        missing = [
            what
            for what, is_there in (
                ("host or port", host is not None and bool(_HOST.fullmatch(host)) and bool(port)),
                ("fingerprint of the certificate", len(fingerprint) == FINGERPRINT_BYTES),
                ("token", len(_decoded(token)) == TOKEN_BYTES),
            )
            if not is_there
        ]
        if missing or host is None or port is None:
            raise RequestError(
                "this pairing link is not whole",
                saw=f"no {', no '.join(missing)}",
                hint="copying all of it, and quotes around it, or a new link from `hybridge pair`",
            )
        name = given.get("n", "")
        return cls(host, port, fingerprint, token, name if _NAME.fullmatch(name) else None)


def plain_name(text: str) -> str | None:
    """Return a machine's name as a link may have it: its first label, with other characters as ``-``."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", text.partition(".")[0]).strip("-_")[:63].lower()
    return name if _NAME.fullmatch(name) else None


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    """Return the bytes of base64url without padding; none for anything else."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""
