"""Fit the starter's latents → RGB matrix by least squares; prints what stands in src/hybridge/models/latent_rgb.py.

    python training/latent_rgb.py

Photographs that scikit-image ships are encoded, and shrunk to the size of their latents; the matrix is the one with
the least squared error between the two.  The photograph that hybridge ships, scikit-image's astronaut, is held out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image

import hybridge
from hybridge.engine import Engine, EngineOptions
from hybridge.models import look_up

FITTED = [
    Path(skimage.data.__file__).parent / name
    for name in ("chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
]
HELD_OUT = Path(hybridge.__file__).parent / "assets" / "photograph.jpg"


def measure(engine: Engine, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(latents with a column of ones, colours in [-1, 1]), a row for each latent."""
    factor = engine.spec.spatial_factor
    with Image.open(path) as file:
        whole = file.convert("RGB")
    picture = whole.crop((0, 0, whole.width // factor * factor, whole.height // factor * factor))
    z = engine.encode(torch.from_numpy(np.asarray(picture).copy())[None], wanted=engine.spec.normalisation)
    latents = z[0].permute(1, 2, 0).reshape(-1, z.shape[1]).double().numpy()
    colours = np.asarray(picture.reduce(factor)).reshape(-1, 3) / 127.5 - 1
    return np.hstack([latents, np.ones((len(latents), 1))]), colours


def main() -> None:
    engine = Engine.load(look_up("starter"), EngineOptions(device="cpu"))
    latents, colours = (np.vstack(part) for part in zip(*(measure(engine, path) for path in FITTED), strict=True))
    matrix = np.linalg.lstsq(latents, colours, rcond=None)[0].round(4)
    for row in matrix:
        print(tuple(float(number) for number in row))
    held_out, expected = measure(engine, HELD_OUT)
    for name, x, y in (("fitted", latents, colours), ("held out", held_out, expected)):
        psnr_db = 10 * np.log10(4 / np.mean((x @ matrix - y) ** 2))
        print(f"{name}: {len(x)} latents, PSNR {psnr_db:.1f} dB at the size of the latents")


if __name__ == "__main__":
    main()
