"""Files of latents on the page: read as the command reads them, guessed, and decoded."""

from __future__ import annotations

import base64
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
from latent_samples import pipeline_latents
from latents_files import FORMS, PLAIN, Z
from safetensors.torch import save_file

from hybridge.models import look_up
from hybridge.protocol import read_latents

pytestmark = pytest.mark.skipif(browser.installed() is None, reason="no browser to click with")

FAILURE = "#latents > .failure"

#: Reads the file of an input as the page does.
READ = """(async () => {
  const { openLatents, candidates, readLatents } = await import(new URL('page/latents-file.js', document.baseURI));
  const [file] = document.querySelector('#read').files;
  const opened = await openLatents(file);
  const { dtype, shape, data, space } = await readLatents(file.name, opened, candidates(opened)[0]);
  return { dtype, shape, space, data: btoa(String.fromCharCode(...data)) };
})()"""


def read(page: browser.Page, file: Path) -> dict[str, object]:
    page.ask(
        "document.querySelector('#read') || document.body.append("
        "Object.assign(document.createElement('input'), { type: 'file', id: 'read' }))"
    )
    page.choose("#read", file)
    found: dict[str, object] = page.ask(READ)
    return found


def musubi(path: Path) -> None:
    save_file({"latents_3x8x6_float32": torch.randn(4, 3, 8, 6)}, path, {"architecture": "wan"})


def kontext(path: Path) -> None:
    save_file({"latents_1x8x6_bf16": torch.randn(16, 1, 8, 6).bfloat16()}, path, {"architecture": "flux_kontext"})


def ours(path: Path) -> None:
    save_file({"latents": Z.half()}, path, {"model": "sdxl", "space": "pipeline"})


ALL: dict[str, tuple[str, Callable[[Path], None]]] = {
    **FORMS,
    **{name: form for name, form in PLAIN.items() if not form[0].endswith(".pt")},
    "musubi": ("x.safetensors", musubi),
    "kontext": ("x.safetensors", kontext),
    "ours": ("x.safetensors", ours),
    "kohya, flux": ("x_flux.npz", FORMS["kohya"][1]),
}


def test_files_are_read_as_the_command_reads_them(page: browser.Page, tmp_path: Path) -> None:
    for form, (name, write) in ALL.items():
        write(tmp_path / name)
        here, there = read(page, tmp_path / name), read_latents(tmp_path / name)
        spaces = {"none": "vae", "model": "pipeline"}
        space = spaces[there.scaling.by] if there.scaling else None
        assert (here["dtype"], here["shape"], here["space"]) == (
            there.tensor.dtype,
            [*there.tensor.shape],
            space,
        ), form
        data = np.frombuffer(base64.b64decode(str(here["data"])), np.uint8)
        if "old" in form:  # the factor may be rounded differently
            assert np.allclose(data.view("<f4"), there.tensor.to_numpy().ravel(), rtol=1e-6)
        else:
            assert data.tobytes() == bytes(there.tensor.data), form


def damaged(tmp_path: Path) -> dict[str, Path]:
    files = {}

    def put(name: str, content: bytes) -> None:
        files[name] = tmp_path / name
        files[name].write_bytes(content)

    save_file({"latents": Z}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    put("cut.safetensors", whole[:-1])
    put("long.safetensors", struct.pack("<Q", 2**60) + whole[8:])
    put("lying.safetensors", whole.replace(b"[1,4,8,6]", b"[1,4,8,7]"))
    put("negative.safetensors", struct.pack("<Q", whole[0] + 2) + whole[8:].replace(b"[1,4,8,6]", b"[-1,-4,8,6]"))
    put("text.safetensors", b"these are no latents at all")
    put("null.safetensors", struct.pack("<Q", 4) + b"null")
    put("entry.safetensors", struct.pack("<Q", 16) + b'{"latents": null}')
    put("empty.latent", b"")
    np.savez_compressed(tmp_path / "x.npz", latents=Z.numpy())
    packed = (tmp_path / "x.npz").read_bytes()
    put("cut.npz", packed[:-30])
    put("broken.npz", packed[:120] + bytes(40) + packed[160:])
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("latents.npy", bytes(2**20))
    files["bomb.npz"] = tmp_path / "bomb.npz"
    put(
        "pickle.npy", b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(80)
    )
    return files


def test_another_file_begins_with_its_first_tensor(page: browser.Page, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"latents": Z, "others": Z[:, :, :4].contiguous()}, tmp_path / f"{name}.safetensors")
    page.choose("#latents input[type=file]", tmp_path / "one.safetensors")
    page.until("document.querySelector('#latents [name=tensor]').value === 'latents'")
    page.select("#latents [name=tensor]", "others")
    page.until("document.querySelector('#latents .what').innerText.includes('1×4×4×6')")
    page.choose("#latents input[type=file]", tmp_path / "two.safetensors")
    page.until("document.querySelector('#latents .what').innerText.includes('1×4×8×6')")
    assert page.ask("document.querySelector('#latents [name=tensor]').value") == "latents"


def test_a_damaged_file_gets_one_sentence(page: browser.Page, tmp_path: Path) -> None:
    for name, path in damaged(tmp_path).items():
        page.ask(f"document.querySelector('{FAILURE}').hidden = true")
        page.choose("#latents input[type=file]", path)
        page.until(f"document.querySelector('{FAILURE}').checkVisibility()")
        expected = "no tensor of floats" if "pickle" in name else "damaged"
        assert expected in page.text(FAILURE), name
        assert not page.ask("document.querySelector('.chosen').checkVisibility()")
    assert not [one for one in page.requests if "/v1/guess" in one]


def test_nothing_is_decoded_before_the_scaling_is_chosen(page: browser.Page, tmp_path: Path) -> None:
    save_file({"latents": Z}, tmp_path / "z.safetensors", {"model": "starter", "space": "vae"})
    page.ask("""(() => { const real = fetch; window.fetch = async (address, options) => {
      if (address.includes('v1/guess')) await new Promise((done) => { window.goOn = done; });
      return real(address, options);
    }; })()""")
    page.choose("#latents input[type=file]", tmp_path / "z.safetensors")
    page.until("window.goOn && document.querySelector('#latents button.main').disabled")
    page.ask("window.goOn()")
    page.until("!document.querySelector('#latents button.main').disabled")
    assert page.ask("document.querySelector('#latents [name=space]').value") == "vae"


def test_latents_that_say_nothing_are_guessed_aloud_and_decoded(page: browser.Page, tmp_path: Path) -> None:
    latents = torch.from_numpy(pipeline_latents()["photograph"]).float()
    save_file({"latents": torch.cat([latents, latents.flip(-1)])}, tmp_path / "two.safetensors")
    page.choose("#latents input[type=file]", tmp_path / "two.safetensors")
    page.until("document.querySelector('.guess').innerText")
    guess = page.text(".guess")
    assert "The file does not say." in guess
    assert "Starter, shipped with hybridge, scaled, as in pipelines" in guess
    assert page.text(".chosen .what").startswith("latents: float32 2×4×24×24")
    page.click("#latents .main")
    page.until("document.querySelector('#latents .result img')?.complete")
    assert page.ask("document.querySelector('#latents .result img').naturalWidth") == 192
    first = page.ask("document.querySelector('#latents .result img').src")
    page.ask("document.querySelector('#latents [name=item]').value = 2")
    page.click("#latents .main")
    page.until(f"document.querySelector('#latents .result img')?.src !== {first!r}")
    page.click("#latents summary")
    page.click("#latents .snippets input[value=python] + span")
    assert 'client.decode("two.safetensors", model="starter", do_scaling=True' in page.text("#latents pre")


def test_a_wrong_choice_brings_the_servers_warning_or_refusal(page: browser.Page, tmp_path: Path) -> None:
    latents = torch.from_numpy(pipeline_latents()["photograph"]).float()
    save_file(
        {
            "latent_tensor": latents / look_up("starter").normalisation.scaling_factor,
            "latent_format_version_0": torch.tensor([]),
        },
        tmp_path / "comfy.latent",
    )
    page.choose("#latents input[type=file]", tmp_path / "comfy.latent")
    page.until("document.querySelector('.guess').innerText")
    assert "written by ComfyUI" in page.text(".chosen .what")
    assert page.ask("document.querySelector('#latents [name=space]').value") == "vae"
    page.select("#latents [name=model]", "wan-2.1")
    page.click("#latents .main")
    page.until(f"document.querySelector('{FAILURE}').checkVisibility()")
    assert page.text(FAILURE).startswith("The server refused: these latents are not wan-2.1's")
    refusals = [page.complaints.pop() for _ in list(page.complaints)]
    assert all("status of 400" in one for one in refusals)  # which Chromium writes to the console by itself


def test_latents_of_a_video_become_a_film(page: browser.Page, tmp_path: Path) -> None:
    save_file({"latents": torch.randn(1, 16, 2, 4, 4)}, tmp_path / "film.safetensors", {"space": "pipeline"})
    page.choose("#latents input[type=file]", tmp_path / "film.safetensors")
    page.until("document.querySelector('.guess').innerText")
    assert "Wan" in page.text(".guess")
    page.click("#latents .main")
    page.until("document.querySelector('#latents video')?.readyState >= 1")
    seen = (
        "(video => [video.videoWidth, video.videoHeight, video.controls])(document.querySelector('#latents video'))"
    )
    assert page.ask(seen) == [32, 32, True]


def test_a_file_larger_than_the_server_takes_is_not_even_read(page: browser.Page, tmp_path: Path) -> None:
    header = b'{"latents":{"dtype":"F32","shape":[1,16,21,500,500],"data_offsets":[0,336000000]}}'
    with (tmp_path / "film.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 336_000_000)
    page.choose("#latents input[type=file]", tmp_path / "film.safetensors")
    page.until(f"document.querySelector('{FAILURE}').checkVisibility()")
    assert page.text(FAILURE) == "The file to send has 320 MiB; this server takes 256 MiB."
    save_file({"weight": torch.zeros(8, 8)}, tmp_path / "matrix.safetensors")
    page.choose("#latents input[type=file]", tmp_path / "matrix.safetensors")
    page.until(f"document.querySelector('{FAILURE}').innerText.includes('8×8')")
    assert page.text(FAILURE) == "No model here has latents of shape 8×8."


def test_what_is_too_large_is_not_sent(page: browser.Page, tmp_path: Path) -> None:
    save_file({"latents": torch.zeros(1, 4, 400, 400)}, tmp_path / "large.safetensors", {"space": "vae"})
    page.choose("#latents input[type=file]", tmp_path / "large.safetensors")
    page.until("document.querySelector('.guess').innerText")
    page.click("#latents .main")
    page.until(f"document.querySelector('{FAILURE}').checkVisibility()")
    assert page.text(FAILURE) == "They decode to 3200×3200 pixels; this server makes 4194304 in one request."
    assert not [one for one in page.requests if "/decode" in one]
