"""Other models that a technique brings along: the refiner, a tiny VAE, a VAE that survives float16.

Beside a pipeline that lies in a folder they are looked for first, under the names that
:func:`hybridge.lab.studies.tiny_pipeline.save_tiny` gives them; otherwise they are the hub's, by what the
pipeline's latents mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models import CATALOGUE
from .facts import Missing
from .pipeline_context import PipelineContext

#: Whose latents a pipeline makes, in the catalogue's words.
_FAMILIES = {
    "StableDiffusionPipeline": "sd-v1",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
}


@dataclass(frozen=True, slots=True)
class ExtraModel:
    """A model that goes with a pipeline.

    Attributes:
        folder: Its name beside the pipeline's folder.
        hub: Its repository, by the family of the pipeline.
        marker: The file that every such model has.
    """

    title: str
    folder: str
    hub: Mapping[str, str]
    marker: str = "config.json"


#: By the techniques that bring them along.
MODELS = {
    "refiner": ExtraModel(
        "the refiner", "refiner", {"sdxl": "stabilityai/stable-diffusion-xl-refiner-1.0"}, marker="model_index.json"
    ),
    "tiny-vae": ExtraModel(
        "a tiny VAE",
        "taesd",
        {row.parent: row.source for row in CATALOGUE.values() if row.kind == "tiny" and row.parent},
    ),
    "vae-fp16-fix": ExtraModel("a VAE that survives float16", "vae-fp16-fix", {"sdxl": CATALOGUE["sdxl"].source}),
}


def family(pipe: Any) -> str | None:
    """Whose latents this pipeline makes: a name of the catalogue; None for a pipeline that is not known here.

    A VAE of diffusers' own class whose latents are scaled otherwise is another one: the starter's, for example.
    """
    name = _FAMILIES.get(type(pipe).__name__)
    vae: Any = getattr(pipe, "vae", None)
    if name is None or type(vae).__name__ != "AutoencoderKL":
        return name
    return name if vae.config.scaling_factor == CATALOGUE[name].normalisation.scaling_factor else None


def source(context: PipelineContext, name: str) -> str | None:
    """Where ``from_pretrained`` finds it for this context: a folder or a repository; None where there is none."""
    wanted = MODELS[name]
    beside = Path(context.origin).parent / wanted.folder
    if Path(context.origin).is_dir() and (beside / wanted.marker).is_file():
        return str(beside)
    return wanted.hub.get(family(context.pipe) or "")


def why_missing(context: PipelineContext, name: str) -> Missing | None:
    """Why it cannot be had for this context, or None; asks nobody outside of this machine."""
    wanted, found = MODELS[name], source(context, name)
    if found is None:
        return Missing("unavailable", f"{wanted.title} for a {type(context.pipe).__name__} is not known here")
    from huggingface_hub import constants, try_to_load_from_cache

    is_here = Path(found).is_dir() or isinstance(try_to_load_from_cache(found, wanted.marker), str)
    if not is_here and constants.HF_HUB_OFFLINE:
        reason = f"{found} is not on this machine, and HF_HUB_OFFLINE forbids fetching it"
        return Missing("unavailable", reason, instead=f"`hf download {found}` where there is a network")
    return None
