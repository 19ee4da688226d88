"""Who gets the page, who gets JSON, and with which headers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import hybridge
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.key_file import KeyRing, hash_key
from hybridge.server.process.server import running

STATIC = Path(hybridge.__file__).parent / "server" / "page" / "static"

#: What browsers send when an address is typed.
BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"}


@pytest.fixture(scope="module")
def locked(engines) -> Iterator[str]:
    """A server with keys."""
    keys = KeyRing({"me": hash_key("secret")})
    with running(create_app(LocalBackend({"sd-v1": engines["sd-v1"]}), keys=keys)) as address:
        yield address


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        (BROWSER["accept"], True),
        ("text/html", True),
        ("text/html;q=0.5, application/json;q=0.4", True),
        ("*/*", False),
        ("", False),
        ("application/json", False),
        ("application/json, text/html", False),
        ("text/html;q=0", False),
        ("text/*", False),
        ("text/html;q=nonsense", False),
    ],
)
def test_who_names_html_gets_the_page(server, accept: str, is_page: bool) -> None:
    answer = httpx.get(server, headers={"accept": accept})
    kind = "text/html; charset=utf-8" if is_page else "application/json"
    assert (answer.status_code, answer.headers["content-type"], answer.headers["vary"]) == (200, kind, "accept")


def test_clients_that_name_nothing_get_json_as_ever(server) -> None:
    assert httpx.get(server).json()["models"] == ["sd-v1", "sdxl", "flux", "taesd"]


@pytest.mark.parametrize("path", ["/", *(f"/page/{path.relative_to(STATIC)}" for path in STATIC.rglob("*.*"))])
def test_every_file_is_served_strictly(server, path: str) -> None:
    answer = httpx.get(server + path, headers=BROWSER)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert not re.search(r"unsafe|https?:|\*|data:.*script", policy)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    again = httpx.get(server + path, headers={**BROWSER, "if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.head(server + path, headers=BROWSER).status_code == 200


@pytest.mark.parametrize("path", ["", "site.py", "../site.py", "%2e%2e/site.py", "/etc/passwd"])
def test_nothing_else_is_served(server, path: str) -> None:
    refused = httpx.get(f"{server}/page/{path}", headers=BROWSER)
    assert (refused.status_code, "error" in refused.json()) == (404, True)


def test_the_page_needs_no_key_and_says_nothing_about_the_server(locked) -> None:
    assert httpx.get(locked, headers=BROWSER).status_code == 200
    assert httpx.get(f"{locked}/page/main.js").status_code == 200
    assert httpx.get(f"{locked}/k/secret/page/main.js").status_code == 200
    for path in ("/", "/v1/models", "/metrics", "/page"):
        assert httpx.get(locked + path).status_code == 401
    assert httpx.post(locked, headers=BROWSER).status_code == 401


def test_limits_are_told_before_anything_is_sent(server) -> None:
    limits = httpx.get(f"{server}/v1/models").json()["limits"]
    assert limits == {"max_body_bytes": 2**28, "max_pixels": 2**22, "max_video_pixels": 2**25, "max_batch": 32}


def entries(language: str) -> dict[str, str]:
    found = re.findall(r"^  '([^']+)': '(.*)',$", (STATIC / "texts" / f"{language}.js").read_text("utf-8"), re.M)
    assert len(found) == len(dict(found)) > 80
    return dict(found)


def test_both_languages_have_the_same_entries_with_the_same_values() -> None:
    english, chinese = entries("en"), entries("zh")
    assert list(english) == list(chinese)
    for name in english:
        assert set(re.findall(r"{\w+}", english[name])) == set(re.findall(r"{\w+}", chinese[name])), name


def test_every_entry_is_used_and_every_used_one_is_there() -> None:
    known = set(entries("en"))
    source = "\n".join(path.read_text("utf-8") for path in [*STATIC.glob("*.js"), STATIC / "index.html"])
    quoted = set(re.findall(r"""['"`]([\w.-]+)['"`]""", source)) | {"photo.drop.how", "latents.drop.how"}
    begun = set(re.findall(r"`([\w.]+\.)\$\{", source))
    assert {name for name in known if name not in quoted and not name.startswith(tuple(begun))} == set()
    named = set(re.findall(r"""data-(?:text|label|placeholder)="([^"]+)\"""", source))
    named |= set(re.findall(r"""\b(?:word|say|button|text|saving|Sentence)\((?:\w+, )?'([^']+)'""", source))
    assert named - known == set()


def test_no_file_is_long_and_none_makes_markup_of_text() -> None:
    for path in STATIC.rglob("*.*"):
        lines = path.read_text("utf-8").splitlines()
        assert len(lines) <= 300, path.name
        for number, line in enumerate(lines, 1):
            assert not re.search(r"(inner|outer|Adjacent)HTML|document\.write|\beval\(", line), (
                path,
                number,
            )
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)[a-z]", line), (path, number)
