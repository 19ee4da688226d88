"""A server's address.  Credentials are stored only here; ``str(address)`` does not show them."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace

import httpx

from ..errors import ClientError

#: Scheme, host, and port unless it is the scheme's own.
Origin = tuple[str, str, int | None]


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """A server's URL, the ``Authorization`` header of every call to it, and its certificate if it is pinned.

    ``url`` has the path prefix and the query (which may include ``?key=…``), but no userinfo: that is moved to
    ``authorization``, because URLs are logged and shown but headers are not.  With a ``certificate`` in PEM, the
    server has to show exactly this one.
    """

    url: httpx.URL
    authorization: str | None = None
    certificate: str | None = None

    @classmethod
    def parse(cls, text: str, api_key: str | None = None, *, certificate: str | None = None) -> Address:
        """Parse ``http://user:token@host/prefix?key=…``; only ``http://host`` is required.

        Raises:
            ClientError: when it is not such a URL, the key is not valid in a header, or there are two credentials.
        """
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in ("http", "https") or not url.host:
            # The text is not shown: it may contain a token, which cannot be located without a scheme.
            raise ClientError("this is not a server's address", expected="http://host:port or https://host")
        authorization = None
        if api_key and api_key.strip():
            authorization = _bearer(api_key.strip())
        if url.userinfo:
            if authorization:
                raise ClientError("two credentials", saw="api_key and a user in the URL", expected="one of them")
            authorization = f"Basic {base64.b64encode(f'{url.username}:{url.password}'.encode()).decode('ascii')}"
        return cls(url.copy_with(userinfo=b""), authorization, certificate)

    def at(self, endpoint: str) -> Address:
        """Return the address of ``endpoint``, a full URL on this server, with this address's credentials and query.

        Raises:
            ClientError: when it is on another server, which must not receive this one's credentials.
        """
        other = Address.parse(endpoint)
        if origin_of(other.url) != origin_of(self.url):
            raise ClientError(
                "the endpoint is on another server", saw=other, expected=self, hint="a Client of its own"
            )
        url = other.url if other.url.query else other.url.copy_with(query=self.url.query or None)
        return replace(self, url=url, authorization=other.authorization or self.authorization)

    def has(self, endpoint: str) -> bool:
        """Return whether a full URL is on this server."""
        return origin_of(Address.parse(endpoint).url) == origin_of(self.url)

    def resolve(self, path: str, query: str = "") -> httpx.URL:
        """Return the URL of ``path`` below this address (of the address itself for ``""``), with both queries."""
        prefix, _, own_query = self.url.raw_path.partition(b"?")
        target = prefix.rstrip(b"/") + path.encode("ascii") if path else prefix
        queries = b"&".join(part for part in (own_query, query.encode("ascii")) if part)
        return self.url.copy_with(raw_path=target + b"?" + queries if queries else target)

    def headers(self) -> dict[str, str]:
        """Return the headers of every call to this address."""
        return {"authorization": self.authorization} if self.authorization else {}

    def secrets(self) -> list[str]:
        """Return the secrets of this address in every form in which they are sent."""
        found = [value for _, value in self.url.params.multi_items()]
        if self.authorization is not None:
            scheme, _, credential = self.authorization.partition(" ")
            found.append(credential)
            if scheme == "Basic":
                user, _, password = base64.b64decode(credential).decode().partition(":")
                found.append(password or user)
        return found

    def __str__(self) -> str:
        return str(self.url.copy_with(query=None, fragment=None))

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"


def _bearer(api_key: str) -> str:
    if not (api_key.isascii() and api_key.isprintable()):
        raise ClientError("this api_key cannot be sent", expected="printable ASCII characters")
    return f"Bearer {api_key}"


def origin_of(url: httpx.URL) -> Origin:
    """Return the scheme, the host and the port of a URL; None for the scheme's own port."""
    return url.scheme, url.host, url.port
