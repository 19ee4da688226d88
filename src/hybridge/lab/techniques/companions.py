"""Other models that a technique brings along: the refiner, a tiny VAE, a VAE that survives float16.

Beside a pipeline that lies in a folder they are looked for first, under the names that :func:`..tiny.save_tiny`
gives them; otherwise they are the hub's, by what the pipeline's latents mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models import CATALOGUE
from .rig import Rig
from .technique import Missing

#: Whose latents a pipeline makes, in the catalogue's words.
_FAMILIES = {
    "StableDiffusionPipeline": "sd-v1",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
}


@dataclass(frozen=True, slots=True)
class Companion:
    """A model that goes with a pipeline.

    Attributes:
        title: In messages.
        folder: Its name beside the pipeline's folder.
        hub: Its repository, by the family of the pipeline.
        marker: The file that every such model has.
    """

    title: str
    folder: str
    hub: Mapping[str, str]
    marker: str = "config.json"


REFINER = Companion(
    "the refiner", "refiner", {"sdxl": "stabilityai/stable-diffusion-xl-refiner-1.0"}, marker="model_index.json"
)
TINY_VAE = Companion(
    "a tiny VAE",
    "taesd",
    {row.parent: row.source for row in CATALOGUE.values() if row.kind == "tiny" and row.parent},
)
FP16_VAE = Companion("a VAE that survives float16", "vae-fp16-fix", {"sdxl": CATALOGUE["sdxl"].source})


def family(pipe: Any) -> str | None:
    """Whose latents this pipeline makes: a name of the catalogue; None for a pipeline that is not known here."""
    return _FAMILIES.get(type(pipe).__name__)


def source(rig: Rig, companion: Companion) -> str | None:
    """Where ``from_pretrained`` finds it for this rig: a folder or a repository; None where there is none."""
    beside = Path(rig.origin).parent / companion.folder
    if Path(rig.origin).is_dir() and (beside / companion.marker).is_file():
        return str(beside)
    return companion.hub.get(family(rig.pipe) or "")


def why_missing(rig: Rig, companion: Companion) -> Missing | None:
    """Why it cannot be had for this rig, or None; asks nobody outside of this machine."""
    found = source(rig, companion)
    if found is None:
        return Missing("unavailable", f"{companion.title} for a {type(rig.pipe).__name__} is not known here")
    from huggingface_hub import constants, try_to_load_from_cache

    is_here = Path(found).is_dir() or isinstance(try_to_load_from_cache(found, companion.marker), str)
    if not is_here and constants.HF_HUB_OFFLINE:
        reason = f"{found} is not on this machine, and HF_HUB_OFFLINE forbids fetching it"
        return Missing("unavailable", reason, instead=f"`hf download {found}` where there is a network")
    return None
