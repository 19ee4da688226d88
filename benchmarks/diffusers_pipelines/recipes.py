"""Pipelines of diffusers, each around a small VAE of its kind, by what their constructors and calls are named.

A family has a pool of components and of arguments; each class takes those that its signatures name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
from case import Case, chosen, vae_name_of
from parts import SIDE, seeded
from PIL import Image

#: Values by name; functions in it make them anew for each pipeline.
Pool = Mapping[str, Any]


def picture(seed: int = 0, side: int = SIDE) -> Image.Image:
    """Random pixels."""
    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (side, side, 3), dtype=np.uint8))


def mask() -> Image.Image:
    """White to the right, which is what shall be painted anew."""
    pixels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    pixels[:, SIDE // 2 :] = 255
    return Image.fromarray(pixels)


#: Arguments of the calls, by name.
ARGUMENTS: Pool = {
    "prompt": "a cat in rain",
    "image": lambda: picture(),
    "control_image": lambda: picture(1),
    "mask_image": lambda: mask(),
    "height": SIDE,
    "width": SIDE,
    "num_inference_steps": 2,
    "strength": 1.0,
    "generator": lambda: seeded(),
    "output_type": "np",
}


def family(
    name: str, classes: Mapping[str, Pool], components: Pool, arguments: Pool | None = None
) -> Iterator[Case]:
    """Cases of a family.

    Args:
        name: Of the family.
        classes: Names of pipeline classes; a second word tells cases of one class apart.  With each what differs
            for it: components, and arguments of the call under ``call``.
        components: For the constructors.
        arguments: For the calls, beside and before :data:`ARGUMENTS`.
    """
    for title, own in classes.items():
        kind = title.split()[0]
        pipeline = _class(kind)
        if pipeline is None:
            continue
        pool = {**components, **{key: value for key, value in own.items() if key != "call"}}
        call = {**ARGUMENTS, **(arguments or {}), **own.get("call", {})}
        yield Case(
            name,
            title,
            partial(chosen, pipeline.__init__, pool),
            pipeline,
            partial(_inputs, call),
            vae_name_of(pool),
        )


def _class(name: str) -> Any:
    found = getattr(diffusers, name, None)
    if found is not None and issubclass(found, diffusers.DiffusionPipeline):
        return found
    for module in ("kolors", "stable_diffusion_xl", "marigold"):  # where a library that it does without is missing
        package = __import__(f"diffusers.pipelines.{module}", fromlist=["x"])
        found = getattr(package, name, None) if name in dir(package) else None
        if found is not None:
            return found
    return None


def _inputs(call: Pool, pipe: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return chosen(type(pipe).__call__, call)
