"""Work that takes long: its place in the queue, cancelled, a tab that closes, a server that goes away."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import browser
import httpx
import numpy as np
import pytest
from processes import serving_process
from safetensors.numpy import save_file

pytestmark = pytest.mark.skipif(browser.installed() is None, reason="no browser to click with")

WORK, FAILURE = "#photo .work", "#photo > .failure"


def decode_later(address: str) -> str:
    """The id of a job of somebody else."""
    query = {"shape": [1, 4, 8, 8], "dtype": "float32"}
    headers = {"content-type": "tensor/binary", "prefer": "respond-async"}
    answer = httpx.post(f"{address}/v1/starter/decode", params=query, content=bytes(1024), headers=headers)
    job: str = answer.json()["id"]
    return job


def job_of(page: browser.Page) -> str:
    """The id of the latest job that the page follows."""
    return [one for one in page.requests if one.endswith("/events")][-1].split("/")[-2]


def test_a_place_in_the_queue_progress_and_cancel(
    page: browser.Page, address: str, photograph: Path, gate: threading.Event
) -> None:
    first = decode_later(address)
    page.until("document.querySelector('#numbers').innerText.includes('1 running')")
    page.select("#photo [name=size]", "256")
    page.choose("#photo input[type=file]", photograph)
    page.until(f"document.querySelector('{WORK}').innerText.includes('next in the queue')")
    page.until("document.querySelector('#numbers').innerText.includes('1 running, 1 waiting')")
    assert "Working" in page.text("#standing")
    httpx.delete(f"{address}/v1/jobs/{first}")
    page.until(f"document.querySelector('{WORK} progress').value === 0.3")
    assert "Encoding: running" in page.text(WORK)
    page.click("[data-language=zh]")
    assert "编码：正在运行" in page.text(WORK)
    page.click("[data-language=en]")
    page.click(f"{WORK} button")
    page.until(f"document.querySelector('{FAILURE}').checkVisibility()")
    assert page.text(FAILURE) == "Cancelled, on the server, too. Try again"
    page.until("document.querySelector('#numbers').innerText.includes('0 running, 0 waiting')")
    assert httpx.get(f"{address}/v1/jobs/{job_of(page)}").status_code == 404
    gate.set()
    for language in ("zh", "en"):  # which leaves the button where it is
        page.click(f"[data-language={language}]")
    page.click(f"{FAILURE} button")
    page.until("document.querySelector('#photo .stage')")


def test_another_file_of_latents_stops_the_first_one_s_decode(
    page: browser.Page, address: str, tmp_path: Path, gate: threading.Event
) -> None:
    for name, width in (("first", 8), ("second", 6)):
        file = tmp_path / f"{name}.safetensors"
        save_file({"latents": np.zeros((1, 4, 8, width), np.float32)}, file, {"model": "starter", "space": "vae"})
        page.choose("#latents input[type=file]", file)
        page.until(f"document.querySelector('#latents .what').innerText.includes('1×4×8×{width}')")
        if name == "first":
            page.until("!document.querySelector('#latents .main').disabled")
            page.click("#latents .main")
            page.until("document.querySelector('#latents .work progress').value === 0.3")
    assert page.ask("document.querySelector('#latents .work').hidden")
    ends_at = time.monotonic() + 20
    while httpx.get(f"{address}/v1/jobs/{job_of(page)}").status_code != 404:
        assert time.monotonic() < ends_at, "the job goes on"
    gate.set()
    assert page.text("#latents .result") == ""
    assert page.ask("document.querySelector('#latents > .failure').hidden")


def test_a_tab_that_closes_takes_its_job_along(
    page: browser.Page, address: str, photograph: Path, gate: threading.Event
) -> None:
    page.choose("#photo input[type=file]", photograph)
    page.until(f"document.querySelector('{WORK} progress').value === 0.3")
    job = job_of(page)
    assert httpx.get(f"{address}/v1/jobs/{job}").json()["state"] == "running"
    page.visit("about:blank")
    for _ in range(100):
        if httpx.get(f"{address}/v1/jobs/{job}").status_code == 404:
            break
    else:
        raise AssertionError("the job goes on")


def test_a_server_that_dies_and_comes_back(window: browser.Page, photograph: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving_process("starter", "--port", port) as (process, address, _):
        window.look(1280)
        window.visit(f"{address}/")
        window.until("document.querySelector('.models li')")
        window.select("#photo [name=size]", "1024")
        window.choose("#photo input[type=file]", photograph)
        window.until(f"document.querySelector('{WORK} progress').value > 0")
        process.kill()
        gone_at = time.monotonic()
        window.until(f"document.querySelector('{WORK}').innerText.includes('the connection was lost; waiting')")
        window.until("document.querySelector('#standing').innerText.startsWith('The server does not answer')")
    with serving_process("starter", "--port", port):
        was_quick = time.monotonic() - gone_at < 15  # the page waits for 20 s
        window.until(f"document.querySelector('{FAILURE}').checkVisibility()")
        lost = (
            "The server was restarted and does not know this job any more; what you chose is still here. Try again"
        )
        away = "No answer from the server; what you chose is still here. Try again"
        assert window.text(FAILURE) == lost if was_quick else window.text(FAILURE) in (lost, away)
        window.until("document.querySelector('#standing').innerText.startsWith('Ready')")
        window.select("#photo [name=size]", "256")  # which begins again, with what was chosen
        window.until("document.querySelector('#photo .stage')")
