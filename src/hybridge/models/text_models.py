"""The pipelines whose text encoders hybridge knows by name, and what a name on the command line stands for.

A model has one part or two: a VAE and the text encoders of a pipeline.  A new row is a name, a repository of the
hub and the pipeline's class.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UnknownModel
from .catalogue import STARTER
from .spec import ModelSpec
from .text_side import TextSide
from .text_sides import text_side_for

#: How text encoders can be quantised, each with the distribution that does it.
QUANTISATIONS = {
    "bitsandbytes-int8": "bitsandbytes",
    "bitsandbytes-nf4": "bitsandbytes",
    "torchao-int8": "torchao",
    "torchao-fp8": "torchao",
    "quanto-int8": "optimum-quanto",
    "quanto-int4": "optimum-quanto",
    "quanto-fp8": "optimum-quanto",
}

#: What stands behind a name or a source to choose the text encoders alone.
TEXT_PART, VAE_PART = "text", "vae"


@dataclass(frozen=True, slots=True)
class TextSpec:
    """The text encoders of a pipeline, before they are loaded.

    Attributes:
        name: What the model is called in URLs and on the command line.
        source: A repository of the Hugging Face hub, or a folder, with a ``model_index.json``.
        class_name: The pipeline's class, which has a row in :mod:`hybridge.models.text_sides`.
        title: For people.
        quantisation: One of :data:`QUANTISATIONS`; None keeps the weights as they are in the files.
    """

    name: str
    source: str
    class_name: str
    title: str = ""
    quantisation: str | None = None

    @property
    def side(self) -> TextSide:
        """What is known of them.

        Raises:
            UnknownModel: for a class that has no row.
        """
        side = text_side_for(self.class_name)
        if side is None:
            raise UnknownModel(f"the text encoders of {self.class_name} are not known here")
        return side


@dataclass(frozen=True, slots=True)
class ModelParts:
    """What a server offers under one name.  At least one part is there."""

    name: str
    vae: ModelSpec | None = None
    text: TextSpec | None = None


_ROWS = (
    TextSpec("starter", str(STARTER), "StableDiffusionPipeline", "Starter, shipped with hybridge"),
    TextSpec("sd-v1", "stable-diffusion-v1-5/stable-diffusion-v1-5", "StableDiffusionPipeline"),
    TextSpec("sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "StableDiffusionXLPipeline"),
    TextSpec("sd3", "stabilityai/stable-diffusion-3.5-medium", "StableDiffusion3Pipeline"),
    TextSpec("flux", "black-forest-labs/FLUX.1-schnell", "FluxPipeline"),
    TextSpec("chroma", "lodestones/Chroma1-HD", "ChromaPipeline", "Chroma"),
    TextSpec("flux2", "black-forest-labs/FLUX.2-dev", "Flux2Pipeline", "FLUX.2 dev"),
    TextSpec("flux2-klein", "black-forest-labs/FLUX.2-klein-4B", "Flux2KleinPipeline", "FLUX.2 Klein 4B"),
    TextSpec("qwen-image", "Qwen/Qwen-Image", "QwenImagePipeline", "Qwen-Image"),
    TextSpec("z-image", "Tongyi-MAI/Z-Image-Turbo", "ZImagePipeline", "Z-Image Turbo"),
    TextSpec("lumina2", "Alpha-VLLM/Lumina-Image-2.0", "Lumina2Pipeline", "Lumina 2"),
    TextSpec("sana", "Efficient-Large-Model/Sana_1600M_1024px_diffusers", "SanaPipeline", "Sana"),
    TextSpec("pixart-sigma", "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "PixArtSigmaPipeline", "PixArt Sigma"),
    TextSpec("hunyuan-video", "hunyuanvideo-community/HunyuanVideo", "HunyuanVideoPipeline", "HunyuanVideo"),
    TextSpec("wan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "WanPipeline", "Wan 2.1 and 2.2"),
    TextSpec("ltx", "Lightricks/LTX-Video", "LTXPipeline", "LTX-Video"),
    TextSpec("ltx2", "Lightricks/LTX-2", "LTX2Pipeline", "LTX-2"),
    TextSpec("mochi", "genmo/mochi-1-preview", "MochiPipeline", "Mochi 1"),
)

#: By name.  Some of the names are those of VAEs, too; the two are served together.
TEXT_CATALOGUE: dict[str, TextSpec] = {row.name: row for row in _ROWS}
