"""The pipelines at their real size: facts for building them on the meta device, and for calling them.

Configs hold what is not the class's default.  The numbers are those of the published checkpoints; a test counts
the parameters that come out.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import RequestError

#: How a part is called: the signature of its forward, and what its inputs' sizes follow from.
Call = Literal["clip", "t5", "unet", "unet-sizes", "sd3", "flux", "decode"]


#: Pixels per latent on each side, of all of these pipelines.
LATENT_PIXELS = 8


@dataclass(frozen=True, slots=True)
class Part:
    """A network of a pipeline.

    Attributes:
        name: ``sdxl/unet``; parts that two pipelines share have one name.
        title: In tables.
        library: Where its class is.
        class_name: The class.
        config: What of its config is not the default; ``bare`` configs of transformers are made of it.
        call: See :data:`Call`.
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
        name: On the command line.
        title: In tables.
        texts: The text encoders, in the order in which they run.
        denoiser: What is called at every step.
        vae: The full decoder, encoder included.
        tiny: The tiny autoencoder for the same latents.
        size: Side of the picture that it was trained for, in pixels.
        steps: diffusers' default for the pipeline.
        is_guided: Whether each step runs the denoiser on two items, with and without the prompt.
        upcasts: Whether the VAE leaves float16 for float32 to decode.
        half: The half precision that it is published for.
        tile: Side of the VAE's own tiles in pixels.
        source: On the hub.
        tiny_source: On the hub.
        family: The catalogue's name of its VAE, as a server would have it.
        pipeline_class: diffusers' class.
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
        """All of them."""
        refiner = (self.refiner,) if self.refiner else ()
        return (*self.texts, self.denoiser, *refiner, self.vae, self.tiny)


def shape_named(name: str) -> PipelineShape:
    """The pipeline of that name.

    Raises:
        RequestError: and names the nearest known one.
    """
    if name not in PIPELINES:
        near = difflib.get_close_matches(name, PIPELINES, n=1)
        raise RequestError(
            "unknown pipeline", saw=repr(name), expected=", ".join(PIPELINES), hint=near[0] if near else None
        )
    return PIPELINES[name]


_CLIP_L = Part(
    "clip-l",
    "CLIP ViT-L text encoder",
    "transformers",
    "CLIPTextModel",
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "clip",
)
#: SD3's first encoder projects, which SD 1.5's and SDXL's do not.
_CLIP_L_PROJECTED = Part(
    "clip-l-projected",
    "CLIP ViT-L text encoder",
    "transformers",
    "CLIPTextModelWithProjection",
    {**_CLIP_L.config, "projection_dim": 768},
    "clip",
)
_CLIP_G = Part(
    "clip-g",
    "CLIP ViT-bigG text encoder",
    "transformers",
    "CLIPTextModelWithProjection",
    {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    },
    "clip",
)


def _t5(tokens: int) -> Part:
    config = {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    }
    return Part(
        f"t5-xxl-{tokens}", "T5 v1.1 XXL encoder", "transformers", "T5EncoderModel", config, "t5", tokens=tokens
    )


_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}


def _vae(name: str, channels: int, tile: int, **config: Any) -> Part:
    whole = {**_BLOCKS, "latent_channels": channels, "sample_size": tile, **config}
    return Part(name, "VAE", "diffusers", "AutoencoderKL", whole, "decode", latent_channels=channels)


def _tiny(name: str, channels: int) -> Part:
    return Part(
        name,
        "Tiny VAE",
        "diffusers",
        "AutoencoderTiny",
        {"latent_channels": channels},
        "decode",
        latent_channels=channels,
    )


_WITHOUT_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}
_VAE_4, _TINY_4 = _vae("vae-4", 4, 512), _tiny("tiny-4", 4)
#: Of the same shape; other tiles.
_VAE_SDXL = _vae("vae-4-sdxl", 4, 1024)
_VAE_16, _TINY_16 = _vae("vae-16", 16, 1024, **_WITHOUT_QUANT), _tiny("tiny-16", 16)

_SD15_UNET = Part(
    "sd15/unet",
    "UNet",
    "diffusers",
    "UNet2DConditionModel",
    {"sample_size": 64, "cross_attention_dim": 768},
    "unet",
    text_width=768,
)
_SDXL_UNET = Part(
    "sdxl/unet",
    "UNet",
    "diffusers",
    "UNet2DConditionModel",
    {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "unet-sizes",
    text_width=2048,
    pooled_width=1280,
    sizes=6,
)
_SDXL_REFINER = Part(
    "sdxl/refiner",
    "Refiner's UNet",
    "diffusers",
    "UNet2DConditionModel",
    {
        "sample_size": 128,
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": 4,
        "attention_head_dim": (6, 12, 24, 24),
        "use_linear_projection": True,
        "cross_attention_dim": 1280,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
    },
    "unet-sizes",
    text_width=1280,
    pooled_width=1280,
    sizes=5,
)
_SD3_TRANSFORMER = Part(
    "sd3/transformer",
    "Transformer",
    "diffusers",
    "SD3Transformer2DModel",
    {
        "sample_size": 128,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 192,
    },
    "sd3",
    tokens=77 + 256,
    latent_channels=16,
    text_width=4096,
    pooled_width=2048,
)


def _flux(name: str, *, tokens: int, guidance: bool) -> Part:
    config = {"guidance_embeds": guidance}
    return Part(
        name,
        "Transformer",
        "diffusers",
        "FluxTransformer2DModel",
        config,
        "flux",
        tokens=tokens,
        latent_channels=16,
        text_width=4096,
        pooled_width=768,
    )


def _flux_pipeline(name: str, title: str, *, tokens: int, steps: int, guidance: bool, source: str) -> PipelineShape:
    return PipelineShape(
        name=name,
        title=title,
        texts=(_CLIP_L, _t5(tokens)),
        denoiser=_flux(f"{name}/transformer", tokens=tokens, guidance=guidance),
        vae=_VAE_16,
        tiny=_TINY_16,
        size=1024,
        steps=steps,
        is_guided=False,
        upcasts=False,
        half="bfloat16",
        tile=1024,
        source=source,
        tiny_source="madebyollin/taef1",
        family="flux",
        pipeline_class="FluxPipeline",
    )


_ROWS = (
    PipelineShape(
        name="sd15",
        title="Stable Diffusion 1.5",
        texts=(_CLIP_L,),
        denoiser=_SD15_UNET,
        vae=_VAE_4,
        tiny=_TINY_4,
        size=512,
        steps=50,
        is_guided=True,
        upcasts=False,
        half="float16",
        tile=512,
        source="stable-diffusion-v1-5/stable-diffusion-v1-5",
        tiny_source="madebyollin/taesd",
        family="sd-v1",
        pipeline_class="StableDiffusionPipeline",
        variant="fp16",
    ),
    PipelineShape(
        name="sdxl",
        title="Stable Diffusion XL",
        texts=(_CLIP_L, _CLIP_G),
        denoiser=_SDXL_UNET,
        vae=_VAE_SDXL,
        tiny=_TINY_4,
        size=1024,
        steps=50,
        is_guided=True,
        upcasts=True,
        half="float16",
        tile=1024,
        source="stabilityai/stable-diffusion-xl-base-1.0",
        tiny_source="madebyollin/taesdxl",
        family="sdxl",
        pipeline_class="StableDiffusionXLPipeline",
        refiner=_SDXL_REFINER,
        fixed_source="madebyollin/sdxl-vae-fp16-fix",
        variant="fp16",
    ),
    PipelineShape(
        name="sd3",
        title="Stable Diffusion 3 medium",
        texts=(_CLIP_L_PROJECTED, _CLIP_G, _t5(256)),
        denoiser=_SD3_TRANSFORMER,
        vae=_VAE_16,
        tiny=_TINY_16,
        size=1024,
        steps=28,
        is_guided=True,
        upcasts=False,
        half="float16",
        tile=1024,
        source="stabilityai/stable-diffusion-3-medium-diffusers",
        tiny_source="madebyollin/taesd3",
        family="sd3",
        pipeline_class="StableDiffusion3Pipeline",
    ),
    _flux_pipeline(
        "flux-dev",
        "FLUX.1 dev",
        tokens=512,
        steps=28,
        guidance=True,
        source="black-forest-labs/FLUX.1-dev",
    ),
    _flux_pipeline(
        "flux-schnell",
        "FLUX.1 schnell",
        tokens=256,
        steps=4,
        guidance=False,
        source="black-forest-labs/FLUX.1-schnell",
    ),
)

#: By name.
PIPELINES: dict[str, PipelineShape] = {row.name: row for row in _ROWS}
