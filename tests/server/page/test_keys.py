"""The page of a server with keys: typed in, refused, listed, added and revoked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import browser
import httpx
import pytest

from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.key_file import KeyFile, add_key
from hybridge.server.process.server import running

pytestmark = pytest.mark.skipif(browser.installed() is None, reason="no browser to click with")

FAILURE = "#keys > .failure"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A file, an admin's key, and one that may not manage keys."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    return file, add_key(file, "boss", is_admin=True), add_key(file, "guest")


@pytest.fixture(scope="module")
def locked(engines, keys: tuple[Path, str, str]) -> Iterator[str]:
    with running(create_app(LocalBackend({"sd-v1": engines["sd-v1"]}), keys=KeyFile(keys[0]))) as address:
        yield address


@pytest.fixture
def page(window: browser.Page, locked: str) -> Iterator[browser.Page]:
    window.look(1280)
    window.visit("about:blank")
    window.requests.clear()
    window.visit(f"{locked}/")
    window.ask("sessionStorage.clear()")
    window.visit(f"{locked}/")
    yield window
    # A refusal is written to the console by Chromium itself.
    assert [one for one in window.complaints if "the server responded with a status of 40" not in one] == []
    window.complaints.clear()


def use(page: browser.Page, key: str) -> None:
    page.until("document.querySelector('#key-form').checkVisibility()")
    page.click("#key")
    page.type(key)
    page.press("Enter")


def test_a_key_is_asked_for_and_kept_in_this_tab_alone(
    page: browser.Page, locked: str, keys: tuple[Path, str, str], photograph: Path
) -> None:
    page.until("document.querySelector('#standing').innerText === 'This server wants a key.'")
    assert page.ask("[...document.querySelectorAll('main > section')].every((one) => one.hidden)")
    use(page, "wrong")
    page.until("document.querySelector('#key-form .failure').innerText")
    assert page.text("#key-form .failure") == "The server does not know that key."
    use(page, keys[2])
    page.until("document.querySelector('.models li')")
    assert not page.ask("document.querySelector('#key-form').checkVisibility()")
    page.choose("#photo input[type=file]", photograph)
    page.until("document.querySelector('#photo .stage')")
    assert not [one for one in page.requests if keys[2] in one]
    assert keys[2] not in page.ask("document.documentElement.outerHTML + document.cookie + location.href")
    assert "$HYBRIDGE_KEY" in page.ask("document.querySelector('#photo pre').textContent")
    assert page.ask("[sessionStorage.getItem('hybridge-key'), localStorage.length]") == [keys[2], 0]
    page.visit(f"{locked}/")
    page.until("document.querySelector('.models li')")
    page.click("#keys .forget")
    page.until("document.querySelector('#key-form').checkVisibility()")
    assert page.ask("[...document.querySelectorAll('main > section')].every((one) => one.hidden)")
    assert page.ask("sessionStorage.getItem('hybridge-key')") is None


def test_a_key_in_the_address_leaves_it(page: browser.Page, locked: str, keys: tuple[Path, str, str]) -> None:
    for address in (f"{locked}/k/{keys[2]}/", f"{locked}/?key={keys[2]}"):
        page.visit("about:blank")
        page.visit(address)
        page.until("document.querySelector('.models li')")
        assert page.ask("location.href") == f"{locked}/"
        page.ask("sessionStorage.clear()")


def test_an_admin_adds_and_revokes(page: browser.Page, locked: str, keys: tuple[Path, str, str]) -> None:
    use(page, keys[1])
    page.until("document.querySelector('#keys').checkVisibility()")
    page.click("#keys .show")
    page.until("document.querySelectorAll('#keys .list li').length === 2")
    page.click("#keys [name=name]")
    page.type("alice")
    page.press("Enter")
    page.until("document.querySelectorAll('#keys .list li').length === 3")
    made = page.text("#keys .new p code")
    assert "It is shown this once" in page.text("#keys .new")
    bearer = {"authorization": f"Bearer {made}"}
    assert httpx.get(f"{locked}/v1/models", headers=bearer).status_code == 200
    page.click("#keys .list li:last-child button")
    assert page.text("#keys .list li:last-child button") == "Revoke for good?"
    page.click("#keys .list li:last-child button")
    page.until("document.querySelectorAll('#keys .list li').length === 2")
    assert httpx.get(f"{locked}/v1/models", headers=bearer).status_code == 401
    page.click("#keys [name=name]")
    page.type("boss")
    page.press("Enter")
    page.until(f"document.querySelector('{FAILURE}').checkVisibility()")
    assert "boss" in page.text(FAILURE)


def test_others_may_not_manage_keys(page: browser.Page, keys: tuple[Path, str, str]) -> None:
    use(page, keys[2])
    page.until("document.querySelector('#keys').checkVisibility()")
    page.click("#keys .show")
    page.until(f"document.querySelector('{FAILURE}').checkVisibility()")
    assert page.text(FAILURE) == "This key may not manage keys; an admin’s may."


def begin(page: browser.Page, photograph: Path) -> str:
    """Encodes until the gate; returns the job's id."""
    page.until("document.querySelector('#photo').checkVisibility()")
    page.select("#photo [name=size]", "256")
    page.choose("#photo input[type=file]", photograph)
    page.until("document.querySelector('#photo .work progress').value === 0.3")
    return [one for one in page.requests if one.endswith("/events")][-1].split("/")[-2]


def test_another_key_stops_what_runs(
    page: browser.Page, locked: str, keys: tuple[Path, str, str], photograph: Path, gate: threading.Event
) -> None:
    use(page, keys[2])
    job = begin(page, photograph)
    page.click("#keys .forget")
    page.until("document.querySelector('#key-form').checkVisibility()")
    page.click("[data-language=zh]")
    assert page.ask("[...document.querySelectorAll('main > section')].every((one) => one.hidden)")
    page.click("[data-language=en]")
    bearer = {"authorization": f"Bearer {keys[2]}"}
    ends_at = time.monotonic() + 20
    while httpx.get(f"{locked}/v1/jobs/{job}", headers=bearer).status_code != 404:
        assert time.monotonic() < ends_at, "the job goes on"
    use(page, keys[1])
    page.until("document.querySelector('#photo').checkVisibility()")
    assert page.ask("document.querySelector('#photo .work').hidden")
    assert page.ask("document.querySelector('#photo > .failure').hidden")
    gate.set()
    page.select("#photo [name=size]", "512")
    page.until("document.querySelector('#photo .stage')")


def test_a_key_is_revoked_while_its_job_runs(
    page: browser.Page, locked: str, keys: tuple[Path, str, str], photograph: Path, gate: threading.Event
) -> None:
    use(page, add_key(keys[0], "brief"))
    begin(page, photograph)
    boss = {"authorization": f"Bearer {keys[1]}"}
    assert httpx.delete(f"{locked}/v1/keys/brief", headers=boss).status_code < 300
    gate.set()
    page.until("document.querySelector('#key-form').checkVisibility()")
    assert page.text("#key-form .failure") == "The server does not know that key."
    use(page, keys[2])
    page.until("document.querySelector('#photo').checkVisibility()")
    page.until("document.querySelector('#photo .work').hidden")
    page.select("#photo [name=size]", "512")
    page.until("document.querySelector('#photo .stage')")
