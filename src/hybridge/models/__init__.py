"""The catalogue: facts about checkpoints, as data.

This package uses no tensors, no device and no network; the engine loads models.
"""

from . import latent_space, single_file
from .catalogue import ALIASES, CATALOGUE, look_up, parent_of_tiny, row_named
from .families import base_of_pipeline, model_of_pipeline
from .frames import FrameRule
from .inpainting import check_inpainting
from .latent_rgb import LATENT_RGB, LatentRgb
from .layout import ImageLayout, Layout, image_layout, latents_layout
from .single_file import SingleFile
from .spec import CLASS_NAMES, ModelSpec, spec_from_config
from .text_models import QUANTISATIONS, TEXT_CATALOGUE, ModelParts, TextSpec
from .text_side import TextSide
from .text_sides import known_text_sides, text_side_for
from .vae_class import Normalisation, VaeClass
from .vae_classes import VAE_CLASSES

__all__ = [
    "ALIASES",
    "CATALOGUE",
    "CLASS_NAMES",
    "LATENT_RGB",
    "QUANTISATIONS",
    "TEXT_CATALOGUE",
    "VAE_CLASSES",
    "FrameRule",
    "ImageLayout",
    "LatentRgb",
    "Layout",
    "ModelParts",
    "ModelSpec",
    "Normalisation",
    "SingleFile",
    "TextSide",
    "TextSpec",
    "VaeClass",
    "base_of_pipeline",
    "check_inpainting",
    "image_layout",
    "known_text_sides",
    "latent_space",
    "latents_layout",
    "look_up",
    "model_of_pipeline",
    "parent_of_tiny",
    "row_named",
    "single_file",
    "spec_from_config",
    "text_side_for",
]
