"""The flows of a client, from the arguments of its constructor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import ClientError
from .fallback import Fallback, local_of
from .flow import Flows
from .load_balancer import Breaker, Fleet
from .profiles import addresses_of
from .redaction import Redactor
from .retry import Retry

#: Headers of a caller that contain no credential.
_OPEN_HEADERS = frozenset({"accept", "accept-language", "content-type", "user-agent"})


def flows_to(
    servers: str | Sequence[str],
    api_key: str | None,
    headers: Mapping[str, str] | None,
    retries: Retry,
    breaker: Breaker | None,
    patience_s: float | None,
    fallback: Fallback | None,
    hedge_after_s: float | None,
) -> Flows:
    """Return the flows to one or several servers, from a client's arguments.

    Raises:
        ClientError: for an invalid address, key, fallback or time, and for an unknown profile.
    """
    if hedge_after_s is not None and not hedge_after_s > 0:
        raise ClientError("hedge_after_s is no time", saw=hedge_after_s, expected="seconds above 0, or None")
    # An empty list is refused like an empty address.
    named = [servers] if isinstance(servers, str) else list(servers) or [""]
    fleet = Fleet([address for one in named for address in addresses_of(one, api_key)], breaker=breaker)
    secrets = [secret for server in fleet.servers for secret in server.address.secrets()]
    secrets += [secret for name, value in (headers or {}).items() for secret in _secrets_of(name, value)]
    local = None if fallback is None else local_of(fallback)
    return Flows(fleet, retries, patience_s, local, Redactor(secrets), hedge_after_s)


def _secrets_of(name: str, value: str) -> list[str]:
    """Return the parts of a caller's header that may be a credential: all of it, and the part after ``Bearer``."""
    return [] if str(name).lower() in _OPEN_HEADERS else [str(value), *str(value).split()[1:]]
