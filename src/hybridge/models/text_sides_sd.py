"""The rows of :mod:`hybridge.models.text_sides` for Stable Diffusion."""

from __future__ import annotations

from .text_parts import (
    CFG,
    CLIP,
    CLIP_TOKENS,
    EMBEDS,
    LENGTH,
    NEGATIVE,
    NEGATIVE_2,
    PAIR_CALL,
    POOLED,
    PROMPT,
    PROMPT_2,
)
from .text_side import Call, Encoder, Guidance, Parameter, TextSide

_POOLED_PAIR = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")

_SD = TextSide(
    name="Stable Diffusion v1 and v2",
    classes=(
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionControlNetXSPipeline",
        "StableDiffusionPAGPipeline",
        "StableDiffusionPAGImg2ImgPipeline",
        "StableDiffusionPAGInpaintPipeline",
        "StableDiffusionControlNetPAGPipeline",
        "StableDiffusionControlNetPAGInpaintPipeline",
        "StableDiffusionDepth2ImgPipeline",
        "StableDiffusionUpscalePipeline",
        "StableDiffusionPanoramaPipeline",
        "StableDiffusionAdapterPipeline",
        "StableDiffusionSAGPipeline",
        "StableDiffusionLDM3DPipeline",
        "StableDiffusionGLIGENPipeline",
        "AnimateDiffPipeline",
        "AnimateDiffControlNetPipeline",
        "AnimateDiffSparseControlNetPipeline",
        "AnimateDiffPAGPipeline",
        "AnimateDiffVideoToVideoPipeline",
        "AnimateDiffVideoToVideoControlNetPipeline",
        "TextToVideoSDPipeline",
        "VideoToVideoSDPipeline",
    ),
    parameters=(PROMPT, NEGATIVE, Parameter("clip_skip", "clip_skip")),
    calls=(PAIR_CALL,),
    outputs=EMBEDS,
    guidance=CFG,
    encoders=(CLIP,),
)

_LCM = TextSide(
    name="Latent Consistency Models",
    classes=("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
    parameters=(PROMPT, Parameter("clip_skip", "clip_skip")),
    calls=(Call(("prompt_embeds", None), negative=None),),
    outputs=EMBEDS,
    guidance=None,
    encoders=(CLIP,),
)

_SDXL = TextSide(
    name="Stable Diffusion XL",
    classes=(
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLControlNetPipeline",
        "StableDiffusionXLControlNetImg2ImgPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
        "StableDiffusionXLControlNetUnionPipeline",
        "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        "StableDiffusionXLControlNetUnionInpaintPipeline",
        "StableDiffusionXLControlNetXSPipeline",
        "StableDiffusionXLPAGPipeline",
        "StableDiffusionXLPAGImg2ImgPipeline",
        "StableDiffusionXLPAGInpaintPipeline",
        "StableDiffusionXLControlNetPAGPipeline",
        "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        "StableDiffusionXLAdapterPipeline",
        "AnimateDiffSDXLPipeline",
    ),
    parameters=(PROMPT, PROMPT_2, NEGATIVE, NEGATIVE_2, Parameter("clip_skip", "clip_skip", above=1)),
    calls=(Call(_POOLED_PAIR),),
    outputs=POOLED,
    guidance=Guidance(zeros_if="force_zeros_for_empty_prompt"),
    # The refiner has only the second encoder.
    encoders=(
        Encoder("text_encoder", "tokenizer", CLIP_TOKENS, optional=True),
        Encoder("text_encoder_2", "tokenizer_2", CLIP_TOKENS),
    ),
)

_SD3 = TextSide(
    name="Stable Diffusion 3 and 3.5",
    classes=(
        "StableDiffusion3Pipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
        "StableDiffusion3ControlNetPipeline",
        "StableDiffusion3ControlNetInpaintingPipeline",
        "StableDiffusion3PAGPipeline",
        "StableDiffusion3PAGImg2ImgPipeline",
    ),
    parameters=(
        PROMPT,
        PROMPT_2,
        Parameter("prompt_3", "prompt"),
        NEGATIVE,
        NEGATIVE_2,
        Parameter("negative_prompt_3", "negative"),
        Parameter("clip_skip", "clip_skip", above=1),
        LENGTH,
    ),
    calls=(Call(_POOLED_PAIR),),
    outputs=POOLED,
    guidance=CFG,
    encoders=(
        CLIP,
        Encoder("text_encoder_2", "tokenizer_2", CLIP_TOKENS),
        Encoder("text_encoder_3", "tokenizer_3", LENGTH.name, optional=True),
    ),
    # Without T5 its embeddings are zeros of the transformer's width.
    stand_ins=("transformer",),
)

SD_TEXT_SIDES = (_SD, _LCM, _SDXL, _SD3)
