"""Every way in which a call fails, as one error that names the server and says what to try."""

from __future__ import annotations

import httpx

from .. import __version__
from ..errors import BadAnswer, ClientError, ServerRefused, ServerTimeout, ServerUnreachable, UnknownParameter
from ..protocol import HttpResponse, read_failure
from .address import Address

#: What a server of another version says to a request that it does not know.
_SKEW_CODES = frozenset({UnknownParameter.__name__, "http-404", "http-405"})

#: Unauthorised, and forbidden: whoever says so, a server or a proxy, and in whatever form, the remedy is a key.
_KEY_STATUSES = frozenset({401, 403})

_SKEW_HINT = f"a look at the server's version (GET / says it); this client is {__version__}"


def named(error: BadAnswer, address: Address) -> BadAnswer:
    """The error with the server's name, and with a hint if it has none."""
    return BadAnswer(
        f"{address}: {error.what}", saw=error.saw, expected=error.expected, hint=error.hint or _SKEW_HINT
    )


def refusal(response: HttpResponse, moved_to: str | None, address: Address) -> ClientError:
    """The error for a response that is not 2xx."""
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
        return named(error, address)
    return ServerRefused(
        f"{address} answered {error.status}: {error.what}",
        status=error.status,
        code=error.code,
        retry_after_s=error.retry_after_s,
        hint=_SKEW_HINT if error.code in _SKEW_CODES else None,
    )


def loss(error: httpx.RequestError, address: Address) -> ClientError:
    """The error for a call without a response."""
    seen = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
        hint = "`hybridge serve` on that machine, or another address"
        return ServerUnreachable(f"{address} cannot be reached", saw=seen, hint=hint)
    if isinstance(error, httpx.TimeoutException):
        hint = "a longer timeout; the first call for a model may have to load it"
        return ServerTimeout(f"{address} did not answer in time", saw=seen, hint=hint)
    if isinstance(error, httpx.DecodingError):
        return BadAnswer(f"{address}: the answer's compression is broken", saw=seen)
    if isinstance(error, (httpx.LocalProtocolError, httpx.UnsupportedProtocol)):
        # The text would quote the header that is wrong, and that may be a credential.
        return ClientError(f"the call to {address} is not valid HTTP", hint="look for line breaks in `headers`")
    return ServerUnreachable(f"{address} broke off the connection", saw=seen, hint="a look at the server's log")
