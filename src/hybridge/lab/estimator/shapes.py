"""The pipelines at their real size: facts for building them on the meta device, and for calling them.

The facts are in ``pipelines.json``, where configs hold what is not the class's default.  The numbers are those of
the published checkpoints; a test counts the parameters that come out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..harness.names import look_up

#: How a part is called: the signature of its forward, and what its inputs' sizes follow from.
Call = Literal["clip", "t5", "unet", "unet-sizes", "sd3", "flux", "decode"]


#: Pixels per latent on each side, of all of these pipelines.
LATENT_PIXELS = 8


@dataclass(frozen=True, slots=True)
class Part:
    """A network of a pipeline.

    Attributes:
        name: ``sdxl/unet``; parts that two pipelines share have one name.
        config: What of its config is not the default; ``bare`` configs of transformers are made of it.
        tokens: Of text that it reads, for text encoders and denoisers.
        latent_channels: Of what it denoises or decodes.
        text_width: Of the text's numbers, for denoisers.
        pooled_width: Of the pooled text's.
        sizes: How many numbers say a size, for SDXL's denoisers.
    """

    name: str
    title: str
    library: Literal["diffusers", "transformers"]
    class_name: str
    config: Mapping[str, Any] = field(hash=False, repr=False)
    call: Call
    tokens: int = 77
    latent_channels: int = 4
    text_width: int = 0
    pooled_width: int = 0
    sizes: int = 0


@dataclass(frozen=True, slots=True)
class PipelineShape:
    """A pipeline and how it is used by default.

    Attributes:
        texts: The text encoders, in the order in which they run.
        vae: The full decoder, encoder included.
        tiny: The tiny autoencoder for the same latents.
        size: Side of the picture that it was trained for, in pixels.
        steps: diffusers' default for the pipeline.
        is_guided: Whether each step runs the denoiser on two items, with and without the prompt.
        upcasts: Whether the VAE leaves float16 for float32 to decode.
        half: The half precision that it is published for.
        tile: Side of the VAE's own tiles in pixels.
        family: The catalogue's name of its VAE, as a server would have it.
        refiner: A second denoiser for the last steps.
        fixed_source: Of a VAE with weights that survive float16, where the own ones do not.
        variant: Of the files, where there is one in half precision.
    """

    name: str
    title: str
    texts: tuple[Part, ...]
    denoiser: Part
    vae: Part
    tiny: Part
    size: int
    steps: int
    is_guided: bool
    upcasts: bool
    half: Literal["float16", "bfloat16"]
    tile: int
    source: str
    tiny_source: str
    family: str
    pipeline_class: str
    refiner: Part | None = None
    fixed_source: str | None = None
    variant: str | None = None

    def parts(self) -> tuple[Part, ...]:
        """Every network, the refiner and the tiny VAE among them."""
        refiner = (self.refiner,) if self.refiner else ()
        return (*self.texts, self.denoiser, *refiner, self.vae, self.tiny)


def shape_named(name: str) -> PipelineShape:
    """The pipeline of that name, or the first whose VAE has it in the catalogue of models: ``flux`` is FLUX.1 dev.

    Raises:
        RequestError: and names the nearest known one.
    """
    name = next((shape.name for shape in PIPELINES.values() if shape.family == name), name)
    return look_up("pipeline", name, PIPELINES)


def _part(name: str, kept: dict[str, Any]) -> Part:
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in kept["config"].items()}
    return Part(**{**kept, "name": name, "config": config})


def _pipeline(kept: dict[str, Any], parts: Mapping[str, Part]) -> PipelineShape:
    made_of: dict[str, Any] = {
        key: parts[kept[key]] for key in ("denoiser", "vae", "tiny", "refiner") if key in kept
    }
    return PipelineShape(**{**kept, **made_of, "texts": tuple(parts[name] for name in kept["texts"])})


def _read() -> dict[str, PipelineShape]:
    kept = json.loads(Path(__file__).with_name("pipelines.json").read_text(encoding="utf-8"))
    # One object for a part of several pipelines.
    parts = {name: _part(name, row) for name, row in kept["parts"].items()}
    return {row["name"]: _pipeline(row, parts) for row in kept["pipelines"]}


#: By name.
PIPELINES: dict[str, PipelineShape] = _read()
