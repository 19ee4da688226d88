"""The models that hybridge knows by name.  A new model is a new row here."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from ..errors import UnknownModel
from .catalogue_videos import LATER_PICTURES, VIDEOS
from .spec import ModelSpec
from .vae_class import Normalisation

#: The folder of the pipeline that the package ships.
STARTER = Path(__file__).parent.parent / "assets" / "starter"

_SD_V1 = Normalisation(0.18215)
_SDXL = Normalisation(0.13025)
_SD3 = Normalisation(1.5305, 0.0609)
_FLUX = Normalisation(0.3611, 0.1159)

#: The VAE architecture of latent diffusion, which all of Stability's and Black Forest Labs' picture models use.
_FULL_SIZE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
_4_CHANNELS = {**_FULL_SIZE, "latent_channels": 4}
_16_CHANNELS = {**_FULL_SIZE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}

_TINY_HALF = "no norms, activations stay small"

_ROWS = (
    ModelSpec(
        name="starter",
        title="Starter, shipped with hybridge",
        source=str(STARTER / "vae"),
        latent_channels=4,
        normalisation=Normalisation(0.2868),
        half="float16",
        half_reason="its weights are float16",
    ),
    ModelSpec(
        name="sd-v1",
        title="Stable Diffusion v1 (ft-MSE)",
        source="stabilityai/sd-vae-ft-mse",
        latent_channels=4,
        normalisation=_SD_V1,
        half="float16",
        half_reason="SD v1's activations stay within float16",
        architecture=_4_CHANNELS,
    ),
    ModelSpec(
        name="sdxl",
        title="Stable Diffusion XL, weights that survive float16",
        source="madebyollin/sdxl-vae-fp16-fix",
        latent_channels=4,
        normalisation=_SDXL,
        half="float16",
        half_reason="the fp16-fix weights were tuned for it",
        architecture=_4_CHANNELS,
    ),
    ModelSpec(
        name="sdxl-original",
        title="Stable Diffusion XL, original weights",
        source="stabilityai/sdxl-vae",
        latent_channels=4,
        normalisation=_SDXL,
        half=None,
        half_reason="the original weights overflow float16 and give black pictures",
        architecture=_4_CHANNELS,
    ),
    ModelSpec(
        name="sd3",
        title="Stable Diffusion 3 and 3.5",
        source="stabilityai/stable-diffusion-3.5-medium",
        subfolder="vae",
        latent_channels=16,
        normalisation=_SD3,
        half="float16",
        half_reason="SD3's pipelines run it in float16",
        architecture=_16_CHANNELS,
    ),
    ModelSpec(
        name="flux",
        title="FLUX.1 (also Chroma, HiDream, Lumina 2, Z-Image)",
        source="black-forest-labs/FLUX.1-schnell",
        subfolder="vae",
        latent_channels=16,
        normalisation=_FLUX,
        half="bfloat16",
        half_reason="Flux pipelines run in bfloat16",
        architecture=_16_CHANNELS,
    ),
    ModelSpec(
        name="taesd",
        title="Tiny autoencoder for SD v1",
        source="madebyollin/taesd",
        class_name="AutoencoderTiny",
        latent_channels=4,
        normalisation=_SD_V1,
        half="float16",
        half_reason=_TINY_HALF,
        parent="sd-v1",
        architecture={"latent_channels": 4},
    ),
    ModelSpec(
        name="taesdxl",
        title="Tiny autoencoder for SDXL",
        source="madebyollin/taesdxl",
        class_name="AutoencoderTiny",
        latent_channels=4,
        normalisation=_SDXL,
        half="float16",
        half_reason=_TINY_HALF,
        parent="sdxl",
        architecture={"latent_channels": 4},
    ),
    ModelSpec(
        name="taesd3",
        title="Tiny autoencoder for SD3",
        source="madebyollin/taesd3",
        class_name="AutoencoderTiny",
        latent_channels=16,
        normalisation=_SD3,
        half="float16",
        half_reason=_TINY_HALF,
        parent="sd3",
        architecture={"latent_channels": 16},
    ),
    ModelSpec(
        name="taef1",
        title="Tiny autoencoder for FLUX.1",
        source="madebyollin/taef1",
        class_name="AutoencoderTiny",
        latent_channels=16,
        normalisation=_FLUX,
        half="float16",
        half_reason=_TINY_HALF,
        parent="flux",
        architecture={"latent_channels": 16},
    ),
)

CATALOGUE: dict[str, ModelSpec] = {row.name: row for row in (*_ROWS, *LATER_PICTURES, *VIDEOS)}

#: Other names of rows: those of pipelines that were published with the same VAE.
ALIASES = {
    "allegro-t2v": "allegro",
    "chroma": "flux",
    "cosmos-predict1": "cosmos",
    "flux2-klein": "flux2",
    "framepack": "hunyuan-video",
    "hidream": "flux",
    "kolors": "sdxl",
    "longcat-image": "flux",
    "ltx": "ltx-video",
    "ltx2": "ltx-2",
    "lumina2": "flux",
    "ovis-image": "flux",
    "pixart-sigma": "sdxl",
    "skyreels-v2": "wan-2.1",
    "wan": "wan-2.1",
    "wan-2.2": "wan-2.1",
    "z-image": "flux",
}


def row_named(name: str) -> ModelSpec | None:
    """Return the row with this name or alias, called so; None if there is none."""
    row = CATALOGUE.get(ALIASES.get(name, name))
    return row if row is None or row.name == name else replace(row, name=name)


def look_up(name: str) -> ModelSpec:
    """Return the row with this name or alias.

    Raises:
        UnknownModel: when there is none; the error names the nearest known one.
    """
    row = row_named(name)
    if row is not None:
        return row
    near = difflib.get_close_matches(name, [*CATALOGUE, *ALIASES], n=1)
    raise UnknownModel(
        "unknown model",
        saw=repr(name[:80]),
        expected="one of " + ", ".join(CATALOGUE),
        hint=f"{near[0]}" if near else "NAME=PATH_OR_REPO[:subfolder] for a VAE of your own",
    )


def parent_of_tiny(source: str) -> ModelSpec | None:
    """Return the model whose latents a tiny autoencoder decodes, found by its folder's or repository's name."""
    base = source.rstrip("/").rpartition("/")[2].lower()
    row = CATALOGUE.get(base)
    return CATALOGUE[row.parent] if row and row.parent else None
