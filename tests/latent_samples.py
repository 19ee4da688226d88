"""Latents as pipelines have them: of photographs, of one colour, of drawings and of noise; with any channels.

The starter model encodes real pictures.  Its latents have four channels and a root mean square of about 1, as those
of other models have; more channels are rotations of them, which keeps what statistics see.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

import hybridge
from hybridge.engine import Engine, EngineOptions
from hybridge.models import look_up

PHOTOGRAPH = Path(hybridge.__file__).parent / "assets" / "photograph.jpg"

SIDE = 192


def _pictures() -> dict[str, np.ndarray]:
    photograph = np.asarray(Image.open(PHOTOGRAPH).convert("RGB"))
    rng = np.random.default_rng(0)
    ramp = np.broadcast_to(np.linspace(0, 255, SIDE).astype(np.uint8)[None, :, None], (SIDE, SIDE, 3))
    bars = np.where((np.arange(SIDE) // 16 % 2)[None, :, None] == 1, 255, 0) + np.zeros((SIDE, SIDE, 3))
    return {
        "photograph": photograph[100 : 100 + SIDE, 200 : 200 + SIDE],
        "sky": photograph[:SIDE, :SIDE],
        "small": np.asarray(Image.fromarray(photograph).resize((SIDE, SIDE))),
        "fog": (photograph[:SIDE, -SIDE:] * 0.1 + 115).astype(np.uint8),
        "night": (photograph[:SIDE, -SIDE:] * 0.1).astype(np.uint8),
        "ramp": ramp,
        "bars": bars.astype(np.uint8),
        "noise": rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8),
        **{
            name: np.full((SIDE, SIDE, 3), colour, np.uint8)
            for name, colour in {
                "black": 0,
                "grey": 128,
                "white": 255,
                "red": (255, 0, 0),
                "blue": (0, 0, 255),
            }.items()
        },
    }


@cache
def pipeline_latents() -> dict[str, np.ndarray]:
    """Normalised latents (1, 4, 24, 24), float32, by the picture's name."""
    engine = Engine.load(look_up("starter"), EngineOptions(device="cpu"))
    import torch

    found = {
        name: engine.encode(torch.from_numpy(pixels.copy())[None], wanted=engine.spec.normalisation)
        for name, pixels in _pictures().items()
    }
    rng = np.random.default_rng(1)
    made = {name: np.ascontiguousarray(latents.numpy()) for name, latents in found.items()}
    made["random"] = rng.normal(size=(1, 4, 24, 24)).astype(np.float32)
    return made


def with_channels(latents: np.ndarray, channels: int) -> np.ndarray:
    """Return latents with as many channels, whose statistics are the same."""
    parts = [latents]
    rng = np.random.default_rng(channels)
    while sum(part.shape[1] for part in parts) < channels:
        turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
        parts.append(np.einsum("dc,bchw->bdhw", turn, latents).astype(np.float32))
    return np.concatenate(parts, 1)[:, :channels]


def packed(latents: np.ndarray, side: int = 2) -> np.ndarray:
    """(B, C, h, w) → (B, tokens, side²·C), as Flux's pipelines pack."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // side, side, width // side, side)
    return squares.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, side**2 * channels)


def with_frames(latents: np.ndarray, frames: int = 3) -> np.ndarray:
    """(B, C, h, w) → (B, C, frames, h, w): a picture that moves."""
    return np.stack([np.roll(latents, frame, -1) for frame in range(frames)], 2)
