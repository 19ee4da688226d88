"""One server with a model of each kind, and one browser in front of it, for all tests of the page."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import browser
import diffusers
import pytest
from text_servers import case_of, saved, serving

from hybridge.errors import Stopped
from hybridge.models import CATALOGUE, ModelSpec, look_up
from hybridge.server.local_vae import VaeModels

PHOTOGRAPH = Path(__file__).parents[3] / "src" / "hybridge" / "assets" / "photograph.jpg"


@pytest.fixture(scope="package")
def wan(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A video model with random weights."""
    folder = tmp_path_factory.mktemp("wan")
    diffusers.AutoencoderKLWan(base_dim=4, num_res_blocks=1).eval().save_pretrained(folder)
    return replace(CATALOGUE["wan-2.1"], source=str(folder), subfolder=None)


@pytest.fixture(scope="package")
def address(wan: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the starter model, a video model and text encoders."""
    texts = [saved(case_of("StableDiffusionPipeline"), tmp_path_factory.mktemp("text"))]
    with serving(texts, cold=[look_up("starter"), wan], memory_bytes=2**31) as address:
        yield address


@pytest.fixture(scope="package")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with browser.browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(window: browser.Page, address: str) -> Iterator[browser.Page]:
    """The page, newly opened at a desk; whatever a test does there, nothing comes from elsewhere or goes wrong."""
    window.look(1280)
    opened(window, address)
    yield window
    assert window.complaints == []
    foreign = [one for one in window.requests if not one.startswith((address, "blob:", "data:"))]
    assert foreign == []


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Jobs stop at three tenths until this is set, or until they are cancelled."""
    opened = threading.Event()
    perform = VaeModels.perform

    def slowly(self: Any, engine: Any, jobs: Any, progress: Any, should_stop: Any) -> Any:
        progress(3, 10)
        while not opened.wait(0.01):
            if should_stop():
                raise Stopped("cancelled")
        return perform(self, engine, jobs, progress, should_stop)

    monkeypatch.setattr(VaeModels, "perform", slowly)
    yield opened
    opened.set()


def opened(window: browser.Page, address: str) -> None:
    """Opens the page, in a tab that has kept nothing."""
    window.visit("about:blank")
    window.requests.clear()
    window.complaints.clear()
    window.visit(f"{address}/")
    window.ask("sessionStorage.clear()")
    window.until("document.querySelector('.models li')")
