"""Every example runs offline, as its first lines say, without a warning; and against a server that is named."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybridge.scenes import check, read

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example in this process, in ``tmp_path``, and gives what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))  # where a script finds its neighbours

    def running(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return running


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(float)


def shipped() -> np.ndarray:
    import hybridge

    return pixels(Path(hybridge.__file__).parent / "assets" / "photograph.jpg")


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one - other) ** 2)))


def test_basic_decode_as_a_process_of_its_own(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "basic_decode.py")],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "512×512: basic.png; remote_decode gives the same\n"
    assert pixels(tmp_path / "basic.png").std() > 20


def test_basic_decode_on_a_server_that_is_named(run: Run, server: str) -> None:
    said = run("basic_decode.py", "--server", server, "--model", "sd-v1", "-o", "other.png")
    assert said == "512×512: other.png; remote_decode gives the same\n"


def test_flux_packed_decode(run: Run, tmp_path: Path) -> None:
    assert run("flux_packed_decode.py") == "[1, 1024, 16] → 512×512: packed.png\n"
    assert psnr_db(pixels(tmp_path / "packed.png"), shipped()) > 22  # the photograph again, not a shuffled one


def test_encode_generate_decode(run: Run, tmp_path: Path) -> None:
    assert run("encode_generate_decode.py") == "[1, 4, 32, 48] latents, 384×256: landscape.png\n"
    picture = pixels(tmp_path / "landscape.png")
    assert psnr_db(picture, picture[:, ::-1]) > 20


def test_queueing(run: Run, tmp_path: Path) -> None:
    names = ["Blueberry ice cream", "Lemonade in a glass", "Comic book art", "Masterpiece", "A bowl of milk"]
    names.append("Cold Coffee with cream")
    assert run("queueing.py").splitlines() == [f"queue/{index}.jpg: {name}" for index, name in enumerate(names)]
    corner = shipped()[:256, :256]
    # Each is the corner of the photograph, turned as its number says: none is lost, doubled or out of turn.
    for index in range(6):
        turned = pixels(tmp_path / "queue" / f"{index}.jpg")
        turned = turned[:, ::-1] if index > 3 else turned
        assert psnr_db(np.rot90(turned, -index), corner) > 15


def test_generating_shows_the_prompt(run: Run, tmp_path: Path) -> None:
    said = run("generate_sd15.py")
    assert said.startswith("vae is starter of http://127.0.0.1:")
    assert said.endswith("128×128: sd15.png\n")
    with Image.open(tmp_path / "sd15.png") as picture:
        assert check(read("a white ring left of a red triangle"), picture).is_right


@pytest.mark.parametrize(("name", "model", "picture"), [("generate_flux.py", "flux", "flux.png")])
def test_generating(name: str, model: str, picture: str, run: Run, tmp_path: Path) -> None:
    said = run(name)
    assert said.startswith(f"vae is {model} of http://127.0.0.1:")
    assert said.endswith(f"64×64: {picture}\n")
    with Image.open(tmp_path / picture) as opened:
        assert opened.size == (64, 64)
        assert all(high - low > 50 for low, high in opened.getextrema())  # no grey area
