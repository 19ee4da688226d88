"""The page as a reader has it: a real Chromium, a mouse and a keyboard, in front of a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import browser
import pytest

from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

pytestmark = pytest.mark.skipif(
    browser.installed() is None, reason=f"no browser to click with: none of {', '.join(browser.NAMES)} is installed"
)

RESULT = "document.querySelector('#photo .stage')"
FAILURE = "document.querySelector('#photo > .failure')"


@pytest.fixture(scope="module")
def address(engines) -> Iterator[str]:
    with running(create_app(LocalBackend({name: engines[name] for name in ("sd-v1", "flux")}))) as address:
        yield address


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with browser.browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(window: browser.Page, address: str) -> Iterator[browser.Page]:
    """The page, newly opened at a desk; whatever a test does there, nothing comes from elsewhere or goes wrong."""
    window.look(1280)
    window.visit(address + "/")
    window.requests.clear()
    window.complaints.clear()
    window.ask("sessionStorage.clear()")
    window.until("document.querySelector('.models li')")
    yield window
    assert window.complaints == []
    assert [one for one in window.requests if not one.startswith((address, "blob:", "data:"))] == []


def shown(page: browser.Page, selector: str) -> str:
    text: str = page.ask(f"document.querySelector({selector!r}).innerText")
    return text


def choose(page: browser.Page, selector: str, value: str) -> None:
    """An option of a select."""
    page.ask(
        f"(s => {{ s.value = {value!r}; s.dispatchEvent(new Event('change', {{bubbles: true}})); }})"
        f"(document.querySelector({selector!r}))"
    )


def test_it_says_what_the_server_has(page: browser.Page) -> None:
    models = shown(page, "#model-list")
    assert "Stable Diffusion v1" in models
    assert "float32 · cpu" in models
    assert "encode" in models
    assert "loaded" in models
    assert "0 running, 0 waiting" in shown(page, "#numbers")
    assert "up to 2048×2048 pixels" in shown(page, "#numbers")
    page.click(".models summary")
    assert page.ask("document.querySelector('.models details p').checkVisibility()")


def test_a_photograph_goes_there_and_back(page: browser.Page, photograph: Path) -> None:
    choose(page, "#photo [name=size]", "256")
    page.choose("#photo input[type=file]", photograph)
    page.until(RESULT)
    facts = shown(page, "#photo .about")
    assert "1×4×32×32 float32, 16 KiB" in facts
    assert "256×256, scaled and cropped from 512×512" in facts
    assert " dB" in facts
