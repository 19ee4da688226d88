"""The lines of Python that put an option in force."""

from __future__ import annotations

import json

from ..estimator.shapes import shape_named
from ..estimator.types import Setup
from ..harness.templates import render
from .network import Link
from .options import BITSANDBYTES

#: diffusers' classes of VAEs that take the pipeline's place.
_VAE_CLASSES = {"vae-fp16-fix": "AutoencoderKL", "tiny-vae": "AutoencoderTiny"}


def lines(
    setup: Setup,
    *,
    link: Link | None = None,
    path: str | None = None,
    vae_path: str | None = None,
    device: str = "cuda",
) -> str:
    """A program that makes one picture, in the order in which techniques must be applied.

    Args:
        setup: With its sizes and steps.
        link: To the server of a remote VAE.
        path: Of the pipeline, in place of the one that everybody knows.
        vae_path: The same of another VAE that it should have: the one that survives float16, or the tiny one.
    """
    shape, stack = shape_named(setup.pipeline), list(setup.stack)
    embeddings = ["prompt_embeds", "pooled_prompt_embeds"]
    if shape.is_guided:  # as encode_prompt gives them
        embeddings = [name for positive in embeddings for name in (positive, f"negative_{positive}")]
    encoders = ["text_encoder", *(f"text_encoder_{place}" for place in range(2, len(shape.texts) + 1))]
    return render(
        str(__package__),
        "snippet.py.jinja",
        {"quoted": _quoted, "none": "{}=None".format, "vae_class": _VAE_CLASSES.get},
        shape=shape,
        setup=setup,
        stack=stack,
        link=link,
        path=path,
        vae_path=vae_path,
        device=device,
        embeddings=embeddings,
        encoders=encoders,
        t5_encoder=next(
            (name for name, part in zip(encoders, shape.texts, strict=True) if part.call == "t5"), None
        ),
        narrows=not BITSANDBYTES.isdisjoint(stack),
        place=next((name for name in ("model-offload", "group-offload") if name in stack), None),
    )


def _quoted(text: str | None) -> str:
    return json.dumps(text, ensure_ascii=False)
