"""Photographs from a folder, and the crops of them that a step of the training sees."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SMALLEST_SCALE = 160  # the short side a whole picture is shrunk to, at least, before a crop is taken from it
LARGEST_SCALE = 1024


def load_photographs(folder: Path) -> dict[str, np.ndarray]:
    """Every photograph of a folder by name, as uint8 (H, W, 3)."""
    found = {path.stem.replace("--", "/"): np.load(path) for path in sorted(folder.glob("*.npy"))}
    if not found:
        raise FileNotFoundError(f"no photographs in {folder}: run training/photographs.py first")
    return found


def random_crop(photograph: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A square piece of the photograph as it looks when the whole is shrunk by a random factor."""
    height, width = photograph.shape[:2]
    short = min(height, width)
    smallest = min(short, max(side, SMALLEST_SCALE))
    scale = math.exp(rng.uniform(math.log(smallest), math.log(max(smallest, min(short, LARGEST_SCALE)))))
    reach = min(short, round(side * short / scale))
    top, left = rng.integers(height - reach + 1), rng.integers(width - reach + 1)
    piece = Image.fromarray(photograph[top : top + reach, left : left + reach])
    crop = np.asarray(piece.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def random_batch(photographs: list[np.ndarray], side: int, count: int, rng: np.random.Generator) -> Tensor:
    """Random crops of random photographs, (count, 3, side, side) in [-1, 1]."""
    chosen = rng.integers(len(photographs), size=count)
    pixels = np.stack([random_crop(photographs[index], side, rng) for index in chosen])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    # A little more or less of each primary colour, so that colours the photographs lack are not lost.
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (count, 3, 1, 1))).float()
    return ((batch + 1) * gain - 1).clamp(-1, 1)


def square(photograph: np.ndarray, side: int) -> Image.Image:
    """The whole picture, cut to its central square and resized: the form in which pictures are judged."""
    height, width = photograph.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    centre = Image.fromarray(photograph[top : top + short, left : left + short])
    return centre.resize((side, side), Image.Resampling.LANCZOS)


def to_tensor(picture: Image.Image) -> Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


def to_pixels(decoded: Tensor) -> np.ndarray:
    """uint8 (H, W, 3) of the first picture of a batch in [-1, 1]."""
    return ((decoded[0].float() + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
