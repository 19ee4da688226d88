"""Pictures of prompts: the server reads and decodes, the page denoises, as diffusers does with the same weights."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator

import browser
import httpx
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from text_servers import serving

from hybridge.models import TEXT_CATALOGUE, look_up
from hybridge.models.catalogue import STARTER
from hybridge.scenes import check, read
from hybridge.server.middleware.key_file import KeyRing, hash_key

pytestmark = pytest.mark.skipif(browser.installed() is None, reason="no browser to click with")

PROMPT = "a red circle above a blue square at night"

#: The page's noise, but the same in each run.
SEEDED = "(() => { let s = 1; Math.random = () => (s = (s * 16807) % 2147483647) / 2147483647; })()"

DENOISED = """(async ([embeddings, count, width, noise]) => {
  const { denoise } = await import(new URL('page/denoiser/denoise.js', document.baseURI));
  const { weightsOf } = await import(new URL('page/denoiser/weights.js', document.baseURI));
  const tokens = { data: Float32Array.from(embeddings), count, width };
  const weights = await weightsOf({ name: 'starter' });
  const { shape, data } = await denoise(weights, tokens, Float32Array.from(noise), 3, () => {});
  return { shape, data: [...new Float32Array(data.buffer)] };
})(%s)"""


@pytest.fixture(scope="module")
def starter() -> Iterator[str]:
    with serving([TEXT_CATALOGUE["starter"]], cold=[look_up("starter")]) as address:
        yield address


@pytest.fixture
def drawing(window: browser.Page, starter: str) -> Iterator[browser.Page]:
    window.look(1280)
    window.visit(f"{starter}/")
    window.complaints.clear()
    window.requests.clear()
    window.until("document.querySelector('.models li')")
    yield window
    assert window.complaints == []
    window.visit("about:blank")


@torch.inference_mode()
def test_the_page_denoises_as_diffusers(drawing: browser.Page) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(STARTER, dtype=torch.float32)
    embeddings, _ = pipe.encode_prompt(PROMPT, "cpu", 1, False)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    how = {"guidance_scale": 1.0, "num_inference_steps": 3, "output_type": "latent"}
    expected = pipe(prompt_embeds=embeddings, latents=noise, **how).images
    given = [embeddings.flatten().tolist(), *embeddings.shape[1:], noise.flatten().tolist()]
    made = drawing.ask(DENOISED % json.dumps(given))
    assert made["shape"] == [1, 4, 16, 16]
    found = torch.tensor(made["data"]).view(1, 4, 16, 16)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_a_prompt_becomes_a_picture(drawing: browser.Page) -> None:
    drawing.ask(SEEDED)
    drawing.click("#prompt textarea")
    drawing.type(PROMPT)
    drawing.click("#prompt button.drawing")
    drawing.until("document.querySelector('#prompt .drawn')?.complete")
    sent = drawing.ask(
        "(() => { const shown = document.querySelector('#prompt .drawn');"
        " const canvas = Object.assign(document.createElement('canvas'), { width: 128, height: 128 });"
        " canvas.getContext('2d').drawImage(shown, 0, 0); return canvas.toDataURL().split(',')[1]; })()"
    )
    with Image.open(io.BytesIO(base64.b64decode(sent))) as picture:
        assert check(read(PROMPT), picture.convert("RGB")).is_right
    assert drawing.ask("document.querySelector('#prompt .drawn').naturalWidth") == 128
    about = drawing.text("#prompt .about")
    assert "10 steps" in about
    assert "in this browser" in about
    assert drawing.ask("document.querySelector('#prompt .drawn').alt") == PROMPT


def test_drawing_is_cancelled(drawing: browser.Page) -> None:
    drawing.click("#prompt textarea")
    drawing.type(PROMPT)
    drawing.click("#prompt button.drawing")
    drawing.until("document.querySelector('#prompt .work p').innerText.startsWith('Denoising')")
    drawing.click("#prompt .work button")
    drawing.until("document.querySelector('#prompt > .failure').innerText.startsWith('Cancelled')")
    assert not [one for one in drawing.requests if "/decode" in one]


def test_other_models_are_not_drawn(page: browser.Page) -> None:
    page.until("!document.querySelector('#prompt').hidden")
    assert not page.ask("document.querySelector('#prompt button.drawing').checkVisibility()")


def test_the_weights_are_for_callers_alone(starter: str) -> None:
    answer = httpx.get(f"{starter}/page/starter-unet.safetensors")
    assert answer.content == (STARTER / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert answer.headers["x-content-type-options"] == "nosniff"
    with serving([], cold=[look_up("starter")], keys=KeyRing({"me": hash_key("a-secret")})) as locked:
        path = f"{locked}/page/starter-unet.safetensors"
        assert httpx.get(path).status_code == 401
        assert httpx.get(path, headers={"authorization": "Bearer a-secret"}).status_code == 200
