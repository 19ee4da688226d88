"""The page as a reader has it: a real Chromium, a mouse and a keyboard, in front of a real server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import browser
import pytest
from PIL import Image

from hybridge.protocol import Scaling, read_latents
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

pytestmark = pytest.mark.skipif(
    browser.installed() is None, reason=f"no browser to click with: none of {', '.join(browser.NAMES)} is installed"
)

FAILURE = "#photo > .failure"
DONE = "document.querySelector('#photo .stage')"


def test_it_says_what_the_server_has(page: browser.Page) -> None:
    models = page.text("#model-list")
    assert "Starter, shipped with hybridge" in models
    assert "float32 · cpu" in models
    assert "encode" in models
    assert "prompt" in models
    numbers = page.text("#numbers")
    assert "0 running, 0 waiting" in numbers
    assert "up to 2048×2048 pixels" in numbers
    assert "within 2.0 GiB" in numbers
    page.click(".models summary")
    assert page.ask("document.querySelector('.models details p').checkVisibility()")


def test_a_photograph_goes_there_and_back(page: browser.Page, photograph: Path) -> None:
    page.select("#photo [name=size]", "256")
    page.choose("#photo input[type=file]", photograph)
    page.until(DONE)
    facts = page.text("#photo .about")
    assert "1×4×32×32 float32, 16 KiB" in facts
    assert "256×256, scaled and cropped from 512×512" in facts
    assert 20 < float(facts.split("PSNR")[1].split("dB")[0]) < 40
    # The slider, by mouse and by keys.
    edge = "document.querySelector('#photo .edge').offsetLeft / document.querySelector('#photo .stage').offsetWidth"
    assert page.ask(edge) == pytest.approx(0.5, abs=0.01)
    page.click("#photo .stage input", x=0.25)
    assert page.ask(edge) == pytest.approx(0.25, abs=0.04)
    page.press("End")
    assert page.ask(edge) == pytest.approx(1.0, abs=0.01)
    # The difference: nearly black, and lighter when it is enlarged.
    page.click("#photo input[value=difference] + span")
    mean = """(() => { const c = document.querySelector('#photo .difference');
      const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
      let sum = 0; for (let i = 0; i < d.length; i += 4) sum += d[i]; return sum / (d.length / 4); })()"""
    page.select("#photo .factor select", "1")
    once = page.ask(mean)
    page.select("#photo .factor select", "8")
    assert 0 < once < 20
    assert 4 * once < page.ask(mean) < 8.5 * once
    # The jobs are gone from the server.
    jobs = {one.split("/v1/jobs/")[1].split("/")[0] for one in page.requests if "/v1/jobs/" in one}
    assert len(jobs) == 2
    gone = "Promise.all(%s.map((id) => fetch(`v1/jobs/${id}`).then((answer) => answer.status)))"
    statuses = page.ask(gone % sorted(jobs))
    page.complaints.clear()  # a 404 is written to the console, and was meant here
    assert statuses == [404, 404]


def test_results_are_saved_and_copied(page: browser.Page, photograph: Path, tmp_path: Path) -> None:
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.select("#photo [name=size]", "256")
    page.choose("#photo input[type=file]", photograph)
    page.until(DONE)
    page.click("#photo a[download='latents.safetensors']")
    page.click("#photo a[download='picture.png']")
    names = ("latents.safetensors", "picture.png")
    for _ in range(200):
        if all((tmp_path / name).exists() for name in names):
            break
        time.sleep(0.05)
    saved = read_latents(tmp_path / "latents.safetensors")
    assert (saved.model, saved.scaling, saved.tensor.shape) == ("starter", Scaling(), (1, 4, 32, 32))
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (256, 256)
    page.click("#photo summary")
    page.click("#photo .snippets input[value=python] + span")
    compile(page.text("#photo pre"), "snippet", "exec")
    page.click("#photo .snippets input[value=diffusers] + span")
    compile(page.text("#photo pre"), "snippet", "exec")
    page.click("#photo .snippets button")
    page.until("document.querySelector('#photo .snippets [role=status]').innerText")
    assert page.text("#photo .snippets [role=status]") in (
        "Copied.",
        "The browser does not allow it; the text is selected.",
    )


def test_a_model_of_videos_takes_a_photograph_too(page: browser.Page, photograph: Path) -> None:
    page.select("#photo [name=model]", "wan-2.1")
    page.select("#photo [name=size]", "256")
    page.choose("#photo input[type=file]", photograph)
    page.until(DONE)
    assert "1×16×1×32×32 float32" in page.text("#photo .about")


def test_what_is_no_photograph_gets_one_sentence(page: browser.Page, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    with film.open("wb") as file:
        file.truncate(200 * 2**20)  # of which nothing is read or sent
    page.choose("#photo input[type=file]", film)
    page.until(f"document.querySelector('{FAILURE}').checkVisibility()")
    assert page.text(FAILURE) == "“film.mp4” is a video; this section takes a photograph."
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    page.choose("#photo input[type=file]", tmp_path / "broken.png")
    page.until(f"document.querySelector('{FAILURE}').textContent.includes('broken')")
    assert "is no picture that this browser can read" in page.text(FAILURE)
    assert not [one for one in page.requests if "/encode" in one]


def test_a_very_long_picture_keeps_the_least_side(page: browser.Page, tmp_path: Path) -> None:
    Image.new("RGB", (6000, 20), "red").save(tmp_path / "long.png")
    page.select("#photo [name=size]", "256")
    page.choose("#photo input[type=file]", tmp_path / "long.png")
    page.until(DONE)
    assert "256×8, scaled and cropped from 6000×20" in page.text("#photo .about")


def test_a_file_that_is_gone_meanwhile(page: browser.Page, photograph: Path, tmp_path: Path) -> None:
    file = tmp_path / "renamed.jpg"
    file.write_bytes(photograph.read_bytes())
    page.select("#photo [name=size]", "256")
    page.choose("#photo input[type=file]", file)
    page.until(DONE)
    file.rename(tmp_path / "other.jpg")
    page.select("#photo [name=size]", "512")
    page.until(f"document.querySelector('{FAILURE}').checkVisibility()")
    assert page.text(FAILURE).startswith("The file is empty, or was moved, renamed or changed since it was chosen.")


def test_a_prompt_becomes_embeddings(page: browser.Page) -> None:
    page.click("#prompt textarea")
    page.type("rain on a tin roof " * 40)
    page.click("#prompt [name=guided]")
    page.click("#prompt .main")
    page.until("document.querySelector('#prompt table')")
    table = page.text("#prompt table")
    assert "prompt_embeds" in table
    assert "negative_prompt_embeds" in table
    assert "1×77×" in table
    assert "its end was cut off (prompt)" in page.text("#prompt .about")
    page.click("#prompt .main")
    page.until("document.querySelector('#prompt .about').innerText.includes('kept by the server')")
    page.click("#prompt summary")
    assert "/v1/tiny/prompt" in page.text("#prompt pre")
    assert page.ask("document.querySelector('#prompt a[download]').download") == "embeddings.safetensors"


def test_it_works_below_a_path_of_a_proxy(window: browser.Page, engines, photograph: Path) -> None:
    app = create_app(LocalBackend({"sd-v1": engines["sd-v1"]}))

    async def below(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            assert scope["path"].startswith("/vae/")
            scope = {**scope, "path": scope["path"].removeprefix("/vae"), "raw_path": scope["raw_path"][4:]}
        await app(scope, receive, send)

    with running(below) as address:
        window.requests.clear()
        window.complaints.clear()
        window.visit(f"{address}/vae/")
        window.until("document.querySelector('.models li')")
        window.choose("#photo input[type=file]", photograph)
        window.until(DONE)
        assert f"{address}/vae/v1/sd-v1/encode" in window.ask("document.querySelector('#photo pre').textContent")
        assert window.complaints == []
        assert all(one.startswith(f"{address}/vae/") for one in window.requests)
        window.visit("about:blank")
