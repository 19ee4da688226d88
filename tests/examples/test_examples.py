"""Every example runs offline, as its first lines say, without a warning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
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


@pytest.mark.parametrize(
    ("name", "model", "picture"),
    [("generate_sd15.py", "sd-v1", "sd15.png"), ("generate_flux.py", "flux", "flux.png")],
)
def test_generating(name: str, model: str, picture: str, tmp_path: Path) -> None:
    said = run(name, folder=tmp_path)
    assert said.startswith(f"vae is {model} of http://127.0.0.1:")
    assert said.endswith(f"64×64: {picture}\n")
    with Image.open(tmp_path / picture) as opened:
        assert opened.size == (64, 64)
        assert all(high - low > 50 for low, high in opened.getextrema())  # no grey area
