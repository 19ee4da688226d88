"""Checks where the body of a request ends, in cases where the parser is too lenient.

A proxy sends the requests of several clients over one connection, and must agree with the server about where each
of them ends: otherwise one client's bytes become another client's request.  llhttp refuses nearly all that is
ambiguous (both lengths, two lengths, bare line feeds, folded lines).  The rest is here.
"""

from __future__ import annotations

from collections.abc import Iterable

Headers = Iterable[tuple[bytes, bytes]]


def find_fault(method: bytes, version: str, headers: Headers) -> tuple[int, str] | None:
    """Return status and message for a head that leaves open where its body ends or which host it is for, else None.

    Args:
        method: In capitals.
        version: Such as ``1.1``.
        headers: Names in small letters.
    """
    if version not in ("1.0", "1.1"):
        return 400, f"HTTP/{version} is not spoken here. Expected: HTTP/1.1 or HTTP/1.0"
    if method == b"CONNECT":
        return 405, "CONNECT is for proxies, and this server is not one. Try: GET /openapi.json for what there is"
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and version == "1.0":
        return 400, "HTTP/1.0 has no Transfer-Encoding. Expected: Content-Length, or HTTP/1.1"
    if codings not in ([], [b"chunked"]):
        return 400, "the Transfer-Encoding is not supported. Expected: chunked, alone and once"
    hosts = sum(name == b"host" for name, _ in headers)
    if hosts > 1:
        return 400, "there are several Host headers. Expected: one"
    if not hosts and version == "1.1":  # RFC 9112, section 3.2
        return 400, "there is no Host header. Expected: the server's name in one, or HTTP/1.0"
    return None


def head_without_upgrade(method: bytes, target: bytes, version: str, headers: Headers) -> bytes:
    """Return the same head without Upgrade, which a server may ignore (RFC 9110, section 7.8).

    Args:
        method: The method, as it was parsed.
        target: The target, as it was parsed.
        version: Such as ``1.1``.
        headers: Names in small letters; values without line ends, as a parser leaves them.
    """
    lines = [b"%s %s HTTP/%s" % (method, target, version.encode("ascii"))]
    lines += [b"%s: %s" % header for header in headers if header[0] != b"upgrade"]
    return b"\r\n".join([*lines, b"", b""])
