"""The lines of Python that put an option in force."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..estimator.shapes import PipelineShape
from ..harness.templates import render
from .options import BITSANDBYTES


@dataclass(frozen=True, slots=True)
class Script:
    """What the lines are about, besides the techniques.

    Attributes:
        steps: Of denoising.
        height, width: Of the picture in pixels.
        path: Of the pipeline, in place of the one that everybody knows.
        vae_path: The same of another VAE that it should have: the one that survives float16, or the tiny one.
        device: Where the pipeline computes.
        server: Address, for a remote VAE.
        model: The server's model.
        decode_budget_bytes: For the exact VAE.
    """

    steps: int
    height: int
    width: int
    path: str | None = None
    vae_path: str | None = None
    device: str = "cuda"
    server: str | None = None
    model: str | None = None
    decode_budget_bytes: int | None = None


def lines(shape: PipelineShape, stack: Sequence[str], script: Script) -> str:
    """A program that makes one picture, in the order in which techniques must be applied."""
    embeddings = ["prompt_embeds", "pooled_prompt_embeds"]
    if shape.is_guided:  # as encode_prompt gives them
        embeddings = [name for positive in embeddings for name in (positive, f"negative_{positive}")]
    encoders = ["text_encoder", *(f"text_encoder_{place}" for place in range(2, len(shape.texts) + 1))]
    return render(
        str(__package__),
        "snippet.py.jinja",
        {"quoted": _quoted, "none": "{}=None".format, "vae_class": _VAE_CLASSES.get},
        shape=shape,
        stack=list(stack),
        script=script,
        embeddings=embeddings,
        encoders=encoders,
        t5_encoder=next(
            (name for name, part in zip(encoders, shape.texts, strict=True) if part.call == "t5"), None
        ),
        narrows=not BITSANDBYTES.isdisjoint(stack),
        place=next((name for name in ("model-offload", "group-offload") if name in stack), None),
    )


#: diffusers' classes of VAEs that take the pipeline's place.
_VAE_CLASSES = {"vae-fp16-fix": "AutoencoderKL", "tiny-vae": "AutoencoderTiny"}


def _quoted(text: str | None) -> str:
    return json.dumps(text, ensure_ascii=False)
