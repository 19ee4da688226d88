"""Find the model whose latents a diffusers pipeline uses, by the name of the pipeline's class."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Words for a pipeline's task in a class name; they do not affect its VAE.
_TASKS = (
    "Adapter|AttendAndExcite|Control|ControlNet|ControlNetUnion|ControlNetXS|DiffEdit|Fill|GLIGEN|GLIGENTextImage|"
    "ImageVariation|Img2Img|Inpaint|Inpainting|InstructPix2Pix|Kontext|ModelEditing|PAG|Panorama|Paradigms|"
    "Pix2PixZero|Prior|SAG|SparseControlNet|VideoToVideo"
)

#: Prefixes of class names, and the catalogue row whose VAE such pipelines were published with.  A name has to
#: consist of a prefix, tasks, and "Pipeline"; mixins and all other names are ignored.  For other pipelines the user
#: has to name the model: StableDiffusionUpscale and LDM3D, for example, have their own VAEs.
_FAMILIES = {
    "StableDiffusion": "sd-v1",
    "AltDiffusion": "sd-v1",
    "AnimateDiff": "sd-v1",
    "CycleDiffusion": "sd-v1",
    "LatentConsistencyModel": "sd-v1",
    "PixArtAlpha": "sd-v1",
    "SemanticStableDiffusion": "sd-v1",
    "StableDiffusionLatentUpscale": "sd-v1",  # it takes SD v1's latents and returns larger ones
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

#: The base class of all pipelines.
_ROOT = "DiffusionPipeline"

_BASE = re.compile(rf"(.+?)(?:{_TASKS})*Pipeline")


def base_of_pipeline(class_name: str) -> str | None:
    """The name of a pipeline's class without what it does with its model: ``Flux`` of ``FluxFillPipeline``."""
    match = _BASE.fullmatch(class_name)
    return match[1] if match else None


def model_of_pipeline(class_names: Iterable[str]) -> str | None:
    """Return the catalogue name of the model whose VAE a pipeline has, or None if it is unknown.

    Args:
        class_names: Names of the pipeline's class and of its bases, so that users' subclasses are found, too.
    """
    for class_name in class_names:
        if class_name == _ROOT:
            return None
        if match := _NAME.fullmatch(class_name):
            return _FAMILIES[match[1]]
    return None
