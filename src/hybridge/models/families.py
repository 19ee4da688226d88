"""Which model's latents a diffusers pipeline works on, told by the name of its class."""

from __future__ import annotations

from collections.abc import Iterable

#: How class names begin, and the row of the catalogue that such pipelines were made for; the longest that fits
#: counts.  None: their VAE is another one, and none of ours may be put in its place.
_FAMILIES: dict[str, str | None] = {
    "StableDiffusion": "sd-v1",
    "StableDiffusionUpscale": None,  # of factor 4, with a scaling of its own
    "StableDiffusionXL": "sdxl",
    "StableDiffusion3": "sd3",
    "Flux": "flux",
    "Flux2": None,
}


def model_of_pipeline(class_names: Iterable[str]) -> str | None:
    """The catalogue's name of the model whose VAE such a pipeline has, or None where that is not known.

    Args:
        class_names: Of the pipeline's class and then its bases, so that classes of people's own are known too.
    """
    for class_name in class_names:
        beginnings = [beginning for beginning in _FAMILIES if class_name.startswith(beginning)]
        if beginnings:
            return _FAMILIES[max(beginnings, key=len)]
    return None
