"""Takes the pictures of the server's page that page.md shows; ``make screenshots`` runs it.

The pictures show how long things take, so nothing else may run meanwhile.  The server has the starter, and for the
Chinese pictures only its VAE, so that both kinds of server are seen.  Needs Chromium and a font with
Chinese.
"""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import browser

import hybridge
from hybridge import Client
from hybridge.engine import EngineOptions
from hybridge.models import TEXT_CATALOGUE, look_up
from hybridge.protocol.safetensors_bytes import write_safetensors
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

IMAGES = Path(__file__).parent / "images"
PHOTOGRAPH = Path(hybridge.__file__).parent / "assets" / "photograph.jpg"
PROMPT = "a red circle above a blue square at night"
DESK, TELEPHONE = 1280, 390
QUALITY = 86
MARGIN = 32


@contextmanager
def serving(*, text: bool) -> Iterator[str]:
    """The address of a server with the starter, its text encoder included or not."""
    texts = [TEXT_CATALOGUE["starter"]] if text else []
    made = LocalBackend({}, cold=[look_up("starter")], texts=texts, options=EngineOptions(device="cpu"))
    with running(create_app(made)) as address:
        yield address


def opened(page: browser.Page, address: str, width: int, *, chinese: bool = False) -> None:
    page.look(width, dark=chinese)
    page.visit(f"{address}/")
    page.until("document.querySelector('.models li')")
    page.click(f"[data-language={'zh' if chinese else 'en'}]")


def photographed(page: browser.Page) -> None:
    """Sends the photograph there and back twice; the first time the model is loaded."""
    for _ in range(2):
        page.ask("document.querySelector('#photo .result').replaceChildren()")
        page.choose("#photo input[type=file]", PHOTOGRAPH)
        page.until("document.querySelector('#photo .stage')")


def drawn(page: browser.Page) -> None:
    page.click("#prompt textarea")
    page.type(PROMPT)
    for _ in range(2):
        page.ask("document.querySelector('#prompt .result').replaceChildren()")
        page.click("#prompt button.drawing")
        page.until("document.querySelector('#prompt .drawn')?.complete")


def decoded(page: browser.Page, latents: Path) -> None:
    page.choose("#latents input[type=file]", latents)
    page.until("document.querySelector('#latents .guess').innerText")  # which moves the button
    page.click("#latents .main")
    page.until("document.querySelector('#latents .result img')")


def taken(page: browser.Page, name: str, width: int, begin: str, end: str) -> None:
    """Writes a picture of the page from the top of one element to the bottom of another."""
    page.until("document.querySelector('.standing.good')")
    page.until("[...document.querySelectorAll('.work')].every((work) => work.hidden)")
    edges = "(() => {{ const r = document.querySelector('{}').getBoundingClientRect(); return r.{} + scrollY; }})()"
    top = max(0, int(page.ask(edges.format(begin, "top"))) - MARGIN)
    bottom = int(page.ask(edges.format(end, "bottom"))) + MARGIN
    clip = {"x": 0, "y": top, "width": width, "height": bottom - top, "scale": 1}
    page.ask("document.activeElement.blur()")
    page.look(width, bottom - top, dark="zh" in name)
    shot = page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    with Image.open(io.BytesIO(base64.b64decode(shot["data"]))) as picture:
        picture.convert("RGB").save(IMAGES / name, quality=QUALITY)


def check_fonts() -> None:
    found = subprocess.run([shutil.which("fc-list") or "", ":lang=zh"], capture_output=True, check=True)  # noqa: S603
    if not found.stdout:
        raise SystemExit("no font has Chinese: apt install fonts-wqy-zenhei")


def main() -> None:
    check_fonts()
    with tempfile.TemporaryDirectory() as folder, browser.browsing(Path(folder) / "profile") as page:
        latents = Path(folder) / "latents.safetensors"
        with serving(text=True) as address:
            with Client(address) as client:
                tensor = client.encode(PHOTOGRAPH, model="starter", do_scaling=True, kind="wire")
                latents.write_bytes(write_safetensors({"latents": tensor}, {}))
            opened(page, address, DESK)
            photographed(page)
            taken(page, "page-en.jpg", DESK, "header", "#photo")
            drawn(page)
            taken(page, "page-en-prompt.jpg", DESK, "#prompt", "#prompt")
            opened(page, address, TELEPHONE)
            photographed(page)
            taken(page, "page-en-390.jpg", TELEPHONE, "#photo", "#photo")
        with serving(text=False) as address:
            opened(page, address, DESK, chinese=True)
            decoded(page, latents)
            taken(page, "page-zh.jpg", DESK, "header", "#latents")
            opened(page, address, TELEPHONE, chinese=True)
            decoded(page, latents)
            taken(page, "page-zh-390.jpg", TELEPHONE, "header", "#models")


if __name__ == "__main__":
    main()
