"""The client's examples run offline as they are, without a warning, and against a server that is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def run(name: str, *arguments: str, folder: Path) -> str:
    """What the example prints, run in ``folder`` with warnings as errors and without the hub."""
    finished = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(float)


def shipped() -> np.ndarray:
    import hybridge

    return pixels(Path(hybridge.__file__).parent / "assets" / "photograph.jpg")


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one - other) ** 2)))


def test_basic_decode(tmp_path: Path) -> None:
    assert run("basic_decode.py", folder=tmp_path) == "512×512: basic.png; remote_decode gives the same\n"
    assert pixels(tmp_path / "basic.png").std() > 20


def test_basic_decode_on_a_server_that_is_named(server: str, tmp_path: Path) -> None:
    said = run("basic_decode.py", "--server", server, "--model", "sd-v1", "-o", "other.png", folder=tmp_path)
    assert said == "512×512: other.png; remote_decode gives the same\n"


def test_flux_packed_decode(tmp_path: Path) -> None:
    assert run("flux_packed_decode.py", folder=tmp_path) == "[1, 1024, 16] → 512×512: packed.png\n"
    assert psnr_db(pixels(tmp_path / "packed.png"), shipped()) > 22  # the photograph again, not a shuffled one


def test_encode_generate_decode(tmp_path: Path) -> None:
    said = run("encode_generate_decode.py", folder=tmp_path)
    assert said == "[1, 4, 32, 48] latents, 384×256: landscape.png\n"
    picture = pixels(tmp_path / "landscape.png")
    assert psnr_db(picture, picture[:, ::-1]) > 20


def test_queueing(tmp_path: Path) -> None:
    said = run("queueing.py", folder=tmp_path)
    names = ["Blueberry ice cream", "Lemonade in a glass", "Comic book art", "Masterpiece", "A bowl of milk"]
    names.append("Cold Coffee with cream")
    assert said.splitlines() == [f"queue/{index}.jpg: {name}" for index, name in enumerate(names)]
    corner = shipped()[:256, :256]
    # Each is the corner of the photograph, turned as its number says: none is lost, doubled or out of turn.
    for index in range(6):
        turned = pixels(tmp_path / "queue" / f"{index}.jpg")
        turned = turned[:, ::-1] if index > 3 else turned
        assert psnr_db(np.rot90(turned, -index), corner) > 15
