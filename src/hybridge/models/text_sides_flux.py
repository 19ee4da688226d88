"""The rows of :mod:`hybridge.models.text_sides` for Flux, and for Chroma, which is made of it."""

from __future__ import annotations

from .text_parts import (
    CFG,
    CLIP,
    EMBEDS,
    LENGTH,
    LLM_UNUSED,
    NEGATIVE,
    NEGATIVE_2,
    POOLED,
    PROMPT,
    PROMPT_2,
    VISION_UNUSED,
    length,
)
from .text_side import Call, Encoder, Guidance, Output, Parameter, TextSide

_FLUX_CALL = Call(("prompt_embeds", "pooled_prompt_embeds", None), negative="call")
_FLUX_ENCODERS = (CLIP, Encoder("text_encoder_2", "tokenizer_2", LENGTH.name))

_FLUX = TextSide(
    name="FLUX.1",
    classes=(
        "FluxPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
        "FluxControlNetPipeline",
        "FluxKontextPipeline",
        "FluxKontextInpaintPipeline",
    ),
    parameters=(PROMPT, PROMPT_2, NEGATIVE, NEGATIVE_2, LENGTH),
    calls=(_FLUX_CALL,),
    outputs=POOLED,
    guidance=Guidance(("true_cfg_scale",), only_if_given=True),
    encoders=_FLUX_ENCODERS,
)

_FLUX_DISTILLED = TextSide(
    name="FLUX.1 without a negative prompt",
    classes=(
        "FluxFillPipeline",
        "FluxControlPipeline",
        "FluxControlImg2ImgPipeline",
        "FluxControlInpaintPipeline",
        "FluxControlNetImg2ImgPipeline",
        "FluxControlNetInpaintPipeline",
    ),
    parameters=(PROMPT, PROMPT_2, LENGTH),
    calls=(Call(_FLUX_CALL.returns, negative=None),),
    outputs=POOLED,
    guidance=None,
    encoders=_FLUX_ENCODERS,
)

_CHROMA = TextSide(
    name="Chroma",
    classes=("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
    parameters=(PROMPT, NEGATIVE, LENGTH),
    calls=(
        Call(
            (
                "prompt_embeds",
                None,
                "prompt_attention_mask",
                "negative_prompt_embeds",
                None,
                "negative_prompt_attention_mask",
            )
        ),
    ),
    # The mask has the embeddings' dtype and includes the first token of padding, which the transformer reads.
    outputs=(Output("prompt_embeds"), Output("prompt_attention_mask")),
    guidance=CFG,
    encoders=(Encoder("text_encoder", "tokenizer", LENGTH.name),),
)

_LAYERS = Parameter("text_encoder_out_layers", "layers")

_FLUX2 = TextSide(
    name="FLUX.2",
    classes=("Flux2Pipeline",),
    parameters=(PROMPT, length(1024), _LAYERS),
    calls=(Call(("prompt_embeds", None), negative=None),),
    outputs=EMBEDS,
    guidance=None,
    encoders=(
        Encoder(
            "text_encoder",
            "tokenizer",
            LENGTH.name,
            without=VISION_UNUSED,
            layers=("text_config.num_hidden_layers", _LAYERS.name),
        ),
    ),
    plain_tokenizers=("tokenizer",),
)

_KLEIN_ENCODERS = (
    Encoder(
        "text_encoder", "tokenizer", LENGTH.name, without=LLM_UNUSED, layers=("num_hidden_layers", _LAYERS.name)
    ),
)

_KLEIN = TextSide(
    name="FLUX.2 Klein",
    classes=("Flux2KleinPipeline", "Flux2KleinInpaintPipeline"),
    parameters=(PROMPT, length(1024), _LAYERS),
    calls=(Call(("prompt_embeds", None), negative="call"),),
    outputs=EMBEDS,
    guidance=Guidance(off_if="is_distilled", text=""),
    encoders=_KLEIN_ENCODERS,
)

_KLEIN_KV = TextSide(
    name="FLUX.2 Klein with cached keys and values",
    classes=("Flux2KleinKVPipeline",),
    parameters=(PROMPT, length(1024), _LAYERS),
    calls=(Call(("prompt_embeds", None), negative=None),),
    outputs=EMBEDS,
    guidance=None,
    encoders=_KLEIN_ENCODERS,
)

FLUX_TEXT_SIDES = (_FLUX, _FLUX_DISTILLED, _CHROMA, _FLUX2, _KLEIN, _KLEIN_KV)
