"""Which model's latents a diffusers pipeline works on, told by the name of its class."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: What a pipeline does with a model; such words change nothing about its VAE.
_TASKS = (
    "Adapter|AttendAndExcite|Control|ControlNet|ControlNetUnion|ControlNetXS|DiffEdit|Fill|GLIGEN|GLIGENTextImage|"
    "ImageVariation|Img2Img|Inpaint|Inpainting|InstructPix2Pix|Kontext|ModelEditing|PAG|Panorama|Paradigms|"
    "Pix2PixZero|Prior|SAG|SparseControlNet|VideoToVideo"
)

#: How class names begin, and the row of the catalogue whose VAE such pipelines were published with.  A name has to
#: be made of one of these, tasks, and "Pipeline"; mixins and all other names say nothing.  What is not here has to
#: be asked for: StableDiffusionUpscale and LDM3D, say, have VAEs of their own.
_FAMILIES = {
    "StableDiffusion": "sd-v1",
    "AltDiffusion": "sd-v1",
    "AnimateDiff": "sd-v1",
    "CycleDiffusion": "sd-v1",
    "LatentConsistencyModel": "sd-v1",
    "PixArtAlpha": "sd-v1",
    "SemanticStableDiffusion": "sd-v1",
    "StableDiffusionLatentUpscale": "sd-v1",  # it takes SD v1's latents and gives larger ones
    "TextToVideoZero": "sd-v1",
    "AnimateDiffSDXL": "sdxl",
    "AuraFlow": "sdxl",
    "HunyuanDiT": "sdxl",
    "Kolors": "sdxl",
    "OmniGen": "sdxl",
    "PixArtSigma": "sdxl",
    "StableDiffusionXL": "sdxl",
    "TextToVideoZeroSDXL": "sdxl",
    "StableDiffusion3": "sd3",
    "Chroma": "flux",
    "Flux": "flux",
    "HiDreamImage": "flux",
    "Lumina2": "flux",
    "VisualCloze": "flux",
    "VisualClozeGeneration": "flux",
    "ZImage": "flux",
}

_NAME = re.compile(rf"({'|'.join(sorted(_FAMILIES, key=len, reverse=True))})(?:{_TASKS})*Pipeline")

#: The class that every pipeline has among its bases.
_ROOT = "DiffusionPipeline"

_BASE = re.compile(rf"(.+?)(?:{_TASKS})*Pipeline")


def base_of_pipeline(class_name: str) -> str | None:
    """The name of a pipeline's class without what it does with its model: ``Flux`` of ``FluxFillPipeline``."""
    match = _BASE.fullmatch(class_name)
    return match[1] if match else None


def model_of_pipeline(class_names: Iterable[str]) -> str | None:
    """The catalogue's name of the model whose VAE such a pipeline has, or None where that is not known.

    Args:
        class_names: Of the pipeline's class and then its bases, so that classes of people's own are known too.
    """
    for class_name in class_names:
        if class_name == _ROOT:
            return None
        if match := _NAME.fullmatch(class_name):
            return _FAMILIES[match[1]]
    return None
