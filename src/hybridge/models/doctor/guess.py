"""Guess the model of latents, and the space that they are in, from their channels and their statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...errors import RequestError
from .. import latent_space
from ..catalogue import CATALOGUE
from ..layout import latents_layout
from ..spec import ModelSpec
from .numbers import root_mean_square

#: Root mean squares within this factor of 1 may be a pipeline's latents.
_LIKELY = 1.8

#: Root mean squares of one picture's latents differ by this factor from those of another's.
_ALIKE = 1.5


@dataclass(frozen=True, slots=True)
class Guess:
    """A model whose latents these may be.

    Attributes:
        spec: The model.
        is_scaled: Whether they are as its pipelines have them, and not in VAE space.
        rms: Their root mean square, once they are scaled.
    """

    spec: ModelSpec
    is_scaled: bool
    rms: float

    def __str__(self) -> str:
        space = "as its pipelines have them" if self.is_scaled else "in VAE space"
        return f"{self.spec.name}, {space} (root mean square {self.rms:.2g}, scaled)"


def guesses(
    latents: Any, height: int | None = None, width: int | None = None, specs: Iterable[ModelSpec] | None = None
) -> list[Guess]:
    """Return what latents may be, the likeliest first: empty if no model has such a shape, or such numbers.

    Models whose latents cannot be told apart are in the order of ``specs``; tiny autoencoders come last.

    Args:
        latents: NumPy's array.
        height: Height of the picture in pixels; packed latents need it.
        width: Width of the picture in pixels.
        specs: The models to choose from; the catalogue without ``starter``, which no pipeline makes latents for, if
            None.
    """
    found = []
    if specs is None:
        specs = [spec for spec in CATALOGUE.values() if spec.name != "starter"]
    for spec in specs:
        try:
            layout = latents_layout(latents.shape, spec, height, width)
        except RequestError:
            continue
        z = latent_space.unpack(latents.astype("float32", copy=False), layout)[:1]
        # Statistics that come with the weights are not known here, and scaled latents need none.
        for is_scaled in (True,) if spec.normalisation.buffers else (True, False):
            rms = root_mean_square(z if is_scaled else latent_space.normalise(z, spec.normalisation))
            if 1 / _LIKELY < rms < _LIKELY:
                found.append(Guess(spec, is_scaled, rms))
    # Scaled latents of one model look like those of all others, so that the space decides first.
    return sorted(found, key=lambda guess: (guess.spec.kind == "tiny", not guess.is_scaled, _distance(guess)))


def _distance(guess: Guess) -> int:
    """0 where the numbers do not tell models apart, so that the order of the models decides."""
    return 0 if guess.is_scaled else int(abs(math.log(guess.rms)) / math.log(_ALIKE))
