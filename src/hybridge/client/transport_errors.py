"""Convert every failure of a call to an error that names the server and says what to try."""

from __future__ import annotations

import re

import httpx

from .. import __version__
from ..errors import BadAnswer, ClientError, ServerRefused, ServerTimeout, ServerUnreachable, UnknownParameter
from ..protocol import HttpResponse, read_failure
from .address import Address

#: Codes with which a server of another version answers an unknown request.
_SKEW_CODES = frozenset({UnknownParameter.__name__, "http-404", "http-405"})

#: Unauthorised, and forbidden: a key is the remedy, whether a server or a proxy sends them.
_KEY_STATUSES = frozenset({401, 403})

_ASYNC = ", or `Prefer: respond-async` and a job for work that takes longer (docs/protocol.md)"

#: Hints for the error pages of a proxy in front of the server.
_PAGE_HINTS = {
    413: "a larger limit in the proxy before the server (nginx: client_max_body_size), or less in one call",
    502: "`hybridge serve` behind that proxy, and the address that the proxy has of it",
    504: f"a longer time limit in the proxy before the server (nginx: proxy_read_timeout){_ASYNC}",
    524: f"a shorter call: Cloudflare waits for 100 seconds{_ASYNC}",
}

#: Texts with which nginx, Apache and Go answer HTTP on a port for HTTPS.
_TLS_PAGE = re.compile(rb"HTTPS port|HTTPS server|SSL-enabled server port")

#: OpenSSL's texts for an answer that is not TLS.
_NO_TLS = re.compile(
    r"WRONG_VERSION_NUMBER|PACKET_LENGTH_TOO_LONG|RECORD_LAYER_FAILURE|record layer|EOF occurred", re.I
)

#: Operating systems' texts for a name without an address.
_NO_NAME = re.compile(
    r"getaddrinfo|Name or service|name resolution|nodename nor servname|No address|looked up", re.I
)

_SKEW_HINT = f"a look at the server's version (GET / says it); this client is {__version__}"


def named(error: BadAnswer, address: Address) -> BadAnswer:
    """Return the error with the server's name, and with a hint if it has none."""
    return BadAnswer(
        f"{address}: {error.what}", saw=error.saw, expected=error.expected, hint=error.hint or _SKEW_HINT
    )


def refusal(response: HttpResponse, moved_to: str | None, address: Address) -> ClientError:
    """Return the error for a response that is not 2xx."""
    if moved_to is not None:
        return BadAnswer(
            f"{address} sends its callers elsewhere",
            saw=f"HTTP {response.status} to {moved_to}",
            hint="that address, if it is one to trust",
        )
    error = read_failure(response)
    if response.status in _KEY_STATUSES:
        said = "" if isinstance(error, BadAnswer) else f": {error.what}"
        return ServerRefused(
            f"{address} does not let this caller in",
            status=response.status,
            code=None if isinstance(error, BadAnswer) else error.code,
            saw=f"HTTP {response.status}{said}",
            hint="the server's key as api_key, or user:password@ in the address",
        )
    if isinstance(error, BadAnswer):
        hints = [hint for hint in (_hint_for_page(response, address), error.hint) if hint]
        error.hint = "; else ".join(hints)
        return named(error, address)
    return ServerRefused(
        f"{address} answered {error.status}: {error.what}",
        status=error.status,
        code=error.code,
        cause=error.cause,
        retry_after_s=error.retry_after_s,
        hint=_SKEW_HINT if error.code in _SKEW_CODES else None,
    )


def _hint_for_page(response: HttpResponse, address: Address) -> str | None:
    """Return a hint for a refusal by a proxy in front of the server."""
    if response.status == 400 and address.url.scheme == "http" and _TLS_PAGE.search(response.body):
        return "https:// in the address"
    return _PAGE_HINTS.get(response.status)


def loss(error: httpx.RequestError, address: Address) -> ClientError:
    """Return the error for a call without a response."""
    seen = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, httpx.ProxyError):
        hint = "the proxy's address, with user:password@ if need be; NO_PROXY or proxy=False if none is wanted"
        return ServerUnreachable(f"{address} cannot be reached through the proxy", saw=seen, hint=hint)
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return _unreachable(seen, address)
    if isinstance(error, httpx.TimeoutException):
        hint = "a longer timeout or deadline_s; the first call for a model may have to load it"
        return ServerTimeout(f"{address} did not answer in time", saw=seen, hint=hint)
    if isinstance(error, (httpx.LocalProtocolError, httpx.UnsupportedProtocol)):
        # The original text would quote the invalid header, which may be a credential.
        return ClientError(f"the call to {address} is not valid HTTP", hint="look for line breaks in `headers`")
    hint = "a look at the server's log"
    if address.url.scheme == "http":
        hint = f"https:// in the address, if the server has a certificate; else {hint}"
    return ServerUnreachable(f"{address} broke off the connection", saw=seen, hint=hint)


def _unreachable(seen: str, address: Address) -> ServerUnreachable:
    if "CERTIFICATE_VERIFY_FAILED" in seen and address.certificate is not None:
        return ServerUnreachable(
            f"{address} shows another certificate than the one that its profile has; nothing was sent to it",
            saw=seen,
            hint="`hybridge pair` there and `hybridge join` here, if its certificate was replaced on purpose; else"
            " another machine answers in its place",
        )
    if "CERTIFICATE_VERIFY_FAILED" in seen:
        return ServerUnreachable(
            f"the certificate of {address} is not trusted",
            saw=seen,
            hint='its authority\'s certificate, or its own if it is self-signed: Client(…, verify="ca.pem"), `--ca'
            " ca.pem`, or HYBRIDGE_CA=ca.pem in the environment",
        )
    if address.url.scheme == "https" and _NO_TLS.search(seen):
        hint = "http:// in the address, if the server has no certificate"
        return ServerUnreachable(f"{address} does not speak TLS", saw=seen, hint=hint)
    if _NO_NAME.search(seen):
        hint = f"the spelling of {address.url.host}, its IP address, and the network's name server"
        return ServerUnreachable(f"{address} cannot be reached: its name is not known", saw=seen, hint=hint)
    return ServerUnreachable(
        f"{address} cannot be reached",
        saw=seen,
        hint="`hybridge serve` on that machine, or another address or port; a server that should be reached from"
        " other machines needs --public or --host, and a firewall that lets it through",
    )
