"""URLs: what is kept for every call, and what is never shown."""

from __future__ import annotations

import pytest

from hybridge.client.address import Address
from hybridge.errors import ClientError

SECRETS = ("s3cret", "k3y")


@pytest.mark.parametrize(
    ("base", "path", "query", "expected"),
    [
        ("http://h:8000", "/", "", "http://h:8000/"),
        ("http://h:8000/", "/v1/sd-v1/decode", "shape=1", "http://h:8000/v1/sd-v1/decode?shape=1"),
        ("http://h/pre%2Ffix/", "/", "", "http://h/pre%2Ffix/"),
        ("http://h/prefix", "/v1/models", "", "http://h/prefix/v1/models"),
        ("http://h/p?key=a%26b", "/", "shape=1&shape=4", "http://h/p/?key=a%26b&shape=1&shape=4"),
        ("http://h/any/path", "", "do_scaling=True", "http://h/any/path?do_scaling=True"),
    ],
)
def test_prefix_and_query_stay(base: str, path: str, query: str, expected: str) -> None:
    assert str(Address.parse(base).resolve(path, query)) == expected


def test_userinfo_becomes_basic_authorization() -> None:
    address = Address.parse("http://me%40home:s3cret@h/")
    assert address.headers() == {"authorization": "Basic bWVAaG9tZTpzM2NyZXQ="}
    assert "s3cret" not in str(address.url)


def test_a_key_becomes_bearer_and_an_empty_one_is_none() -> None:
    assert Address.parse("http://h", " k3y\n").headers() == {"authorization": "Bearer k3y"}
    assert Address.parse("http://h", "").headers() == {}


def test_nothing_secret_is_shown() -> None:
    address = Address.parse("http://me:s3cret@h/prefix?key=k3y#k3y")
    assert str(address) == "http://h/prefix"
    assert repr(address) == "Address('http://h/prefix')"


@pytest.mark.parametrize(
    ("text", "api_key"),
    [
        ("k3y:s3cret@h:8000", None),
        ("localhost:8000?key=k3y", None),
        ("ftp://me:s3cret@h", None),
        ("http://", None),
        ("http://h:port?key=k3y", None),
        ("http://me:s3cret@h", "k3y"),
        ("http://h", "k3\ny"),
        ("http://h", "k3y…"),
    ],
)
def test_what_is_refused_is_not_quoted(text: str, api_key: str | None) -> None:
    with pytest.raises(ClientError) as caught:
        Address.parse(text, api_key)
    assert not any(secret in str(caught.value) for secret in SECRETS)


def test_an_endpoint_has_the_credentials_of_its_server() -> None:
    server = Address.parse("http://me:s3cret@h/prefix?key=k3y")
    there = server.at("http://h:80/other")
    assert there.headers() == server.headers()
    assert str(there.resolve("", "a=1")) == "http://h/other?key=k3y&a=1"
    assert str(server.at("http://h/other?key=own").resolve("")) == "http://h/other?key=own"


@pytest.mark.parametrize("endpoint", ["http://elsewhere/", "https://h/", "http://h:8000/"])
def test_another_server_is_not_sent_them(endpoint: str) -> None:
    with pytest.raises(ClientError, match="another server"):
        Address.parse("http://h", "k3y").at(endpoint)
