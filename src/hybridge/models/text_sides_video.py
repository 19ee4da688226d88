"""The rows of :mod:`hybridge.models.text_sides` for video models."""

from __future__ import annotations

from .text_parts import (
    CFG,
    CLEAN,
    CLEANERS,
    CLIP_TOKENS,
    EMBEDS,
    LENGTH,
    LLM_UNUSED,
    MASKED,
    MASKED_CALL,
    NEGATIVE,
    NEGATIVE_2,
    PAIR_CALL,
    PROMPT,
    PROMPT_2,
    VISION_UNUSED,
    length,
)
from .text_side import Call, Encoder, Guidance, Output, Parameter, TextSide

_T5 = (Encoder("text_encoder", "tokenizer", LENGTH.name),)

_HUNYUAN_OUTPUTS = (Output("prompt_embeds"), Output("pooled_prompt_embeds"), Output("prompt_attention_mask"))
_HUNYUAN_CALL = Call(("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"), negative="call")
_HUNYUAN_PARAMETERS = (
    *(PROMPT, PROMPT_2, NEGATIVE, NEGATIVE_2, Parameter("prompt_template", "template"), length(1024)),
)
_TRUE_CFG = Guidance(("true_cfg_scale",), only_if_given=True)

_HUNYUAN_VIDEO = TextSide(
    name="HunyuanVideo",
    classes=("HunyuanVideoPipeline", "HunyuanVideoFramepackPipeline", "HunyuanSkyreelsImageToVideoPipeline"),
    parameters=_HUNYUAN_PARAMETERS,
    calls=(_HUNYUAN_CALL,),
    outputs=_HUNYUAN_OUTPUTS,
    guidance=_TRUE_CFG,
    encoders=(
        Encoder("text_encoder", "tokenizer", LENGTH.name, extra_tokens=95),
        Encoder("text_encoder_2", "tokenizer_2", CLIP_TOKENS),
    ),
)

_HUNYUAN_VIDEO_I2V = TextSide(
    name="HunyuanVideo from a picture",
    classes=("HunyuanVideoImageToVideoPipeline",),
    parameters=(*_HUNYUAN_PARAMETERS, Parameter("image_embed_interleave", "whole", most=64)),
    calls=(_HUNYUAN_CALL,),
    outputs=_HUNYUAN_OUTPUTS,
    guidance=_TRUE_CFG,
    encoders=(
        Encoder("text_encoder", "tokenizer", LENGTH.name, extra_tokens=700, without=LLM_UNUSED),
        Encoder("text_encoder_2", "tokenizer_2", CLIP_TOKENS),
    ),
    others=("image_processor",),
    # Its config says how many of the picture's tokens are taken.
    stand_ins=("transformer",),
    picture="hunyuan video",
)

_HUNYUAN_VIDEO_15 = TextSide(
    name="HunyuanVideo 1.5",
    classes=("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"),
    parameters=(PROMPT, NEGATIVE),
    calls=(
        Call(("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2"), negative="call"),
    ),
    outputs=(
        Output("prompt_embeds", mask="prompt_embeds_mask"),
        Output("prompt_embeds_mask"),
        Output("prompt_embeds_2", mask="prompt_embeds_mask_2"),
        Output("prompt_embeds_mask_2"),
    ),
    guidance=Guidance((), guider="guider", text=""),
    encoders=(
        Encoder("text_encoder", "tokenizer", 1000, extra_tokens=108),
        Encoder("text_encoder_2", "tokenizer_2", 256),
    ),
    stand_ins=("vae",),
    count="batch_size",
    takes_dtype=True,
)

_WAN = TextSide(
    name="Wan",
    classes=("WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline", "WanVideoToVideoPipeline"),
    parameters=(PROMPT, NEGATIVE, LENGTH),
    calls=(PAIR_CALL,),
    outputs=EMBEDS,
    guidance=CFG,
    encoders=_T5,
    libraries=("ftfy",),
)

_SKYREELS = TextSide(
    name="SkyReels V2",
    classes=(
        "SkyReelsV2Pipeline",
        "SkyReelsV2ImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingPipeline",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    ),
    parameters=(PROMPT, NEGATIVE, LENGTH),
    calls=(PAIR_CALL,),
    outputs=EMBEDS,
    guidance=CFG,
    encoders=_T5,
    libraries=("ftfy",),
)

_LTX = TextSide(
    name="LTX-Video",
    classes=("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"),
    parameters=(PROMPT, NEGATIVE, LENGTH),
    calls=(MASKED_CALL,),
    outputs=MASKED,
    guidance=CFG,
    encoders=_T5,
)

_LTX2 = TextSide(
    name="LTX-2",
    classes=("LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline", "LTX2InContextPipeline"),
    parameters=(PROMPT, NEGATIVE, length(1024)),
    calls=(MASKED_CALL,),
    outputs=MASKED,
    guidance=Guidance(("guidance_scale", "audio_guidance_scale")),
    encoders=(Encoder("text_encoder", "tokenizer", LENGTH.name, without=VISION_UNUSED, stacks_all=True),),
)

_COGVIDEOX = TextSide(
    name="CogVideoX",
    classes=(
        "CogVideoXPipeline",
        "CogVideoXImageToVideoPipeline",
        "CogVideoXVideoToVideoPipeline",
        "CogVideoXFunControlPipeline",
    ),
    parameters=(PROMPT, NEGATIVE, LENGTH),
    calls=(PAIR_CALL,),
    outputs=EMBEDS,
    guidance=CFG,
    encoders=_T5,
)

_MOCHI = TextSide(
    name="Mochi",
    classes=("MochiPipeline",),
    parameters=(PROMPT, NEGATIVE, LENGTH),
    calls=(MASKED_CALL,),
    outputs=MASKED,
    guidance=CFG,
    encoders=_T5,
    # An empty prompt at the end of a batch sets all embeddings to zero.
    separates_empty=True,
)

_ALLEGRO = TextSide(
    name="Allegro",
    classes=("AllegroPipeline",),
    parameters=(PROMPT, NEGATIVE, CLEAN, LENGTH),
    calls=(MASKED_CALL,),
    outputs=MASKED,
    guidance=CFG,
    encoders=_T5,
    libraries=CLEANERS,
)

_EASYANIMATE = TextSide(
    name="EasyAnimate",
    classes=("EasyAnimatePipeline", "EasyAnimateControlPipeline", "EasyAnimateInpaintPipeline"),
    parameters=(PROMPT, NEGATIVE),
    calls=(
        Call(
            ("prompt_embeds", "negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask")
        ),
    ),
    outputs=(Output("prompt_embeds"), Output("prompt_attention_mask")),
    # The pipeline's default is None, which its encode_prompt cannot read.
    guidance=Guidance(text=""),
    encoders=(Encoder("text_encoder", "tokenizer", 256, without=VISION_UNUSED),),
    takes_dtype=True,
)

_KANDINSKY_PARAMETERS = (PROMPT, NEGATIVE, length(1024))
_KANDINSKY_CALL = Call(("prompt_embeds_qwen", "prompt_embeds_clip", "prompt_cu_seqlens"), negative="call")
_KANDINSKY_OUTPUTS = (
    Output("prompt_embeds_qwen"),
    Output("prompt_embeds_clip"),
    Output("prompt_cu_seqlens", layout="cu_seqlens"),
)
_KANDINSKY_ENCODERS = (
    Encoder(
        "text_encoder", "tokenizer", LENGTH.name, extra_tokens=130, cut_with=2, fills=False, without=VISION_UNUSED
    ),
    Encoder("text_encoder_2", "tokenizer_2", CLIP_TOKENS),
)

_KANDINSKY_PICTURES = TextSide(
    name="Kandinsky 5 for pictures",
    classes=("Kandinsky5T2IPipeline",),
    parameters=_KANDINSKY_PARAMETERS,
    calls=(_KANDINSKY_CALL,),
    outputs=_KANDINSKY_OUTPUTS,
    guidance=Guidance(text=""),
    encoders=_KANDINSKY_ENCODERS,
    plain_tokenizers=("tokenizer",),
    takes_dtype=True,
    pads_to_longest=True,
    libraries=("ftfy",),
)

_KANDINSKY_VIDEO = TextSide(
    name="Kandinsky 5 for videos",
    classes=("Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline"),
    parameters=_KANDINSKY_PARAMETERS,
    calls=(_KANDINSKY_CALL,),
    outputs=_KANDINSKY_OUTPUTS,
    guidance=Guidance(
        text="Static, 2D cartoon, cartoon, 2d animation, paintings, images, worst quality, low quality, ugly, "
        "deformed, walking backwards"
    ),
    encoders=_KANDINSKY_ENCODERS,
    plain_tokenizers=("tokenizer",),
    takes_dtype=True,
    pads_to_longest=True,
    libraries=("ftfy",),
)

_COSMOS = TextSide(
    name="Cosmos 1 and 2",
    classes=(
        "CosmosTextToWorldPipeline",
        "CosmosVideoToWorldPipeline",
        "Cosmos2TextToImagePipeline",
        "Cosmos2VideoToWorldPipeline",
    ),
    parameters=(PROMPT, NEGATIVE, LENGTH),
    calls=(PAIR_CALL,),
    outputs=EMBEDS,
    guidance=CFG,
    encoders=_T5,
    stand_ins=("safety_checker",),
)

_COSMOS_25 = TextSide(
    name="Cosmos 2.5",
    classes=("Cosmos2_5_PredictBasePipeline", "Cosmos2_5_TransferPipeline"),
    parameters=(PROMPT, NEGATIVE, LENGTH),
    calls=(PAIR_CALL,),
    outputs=EMBEDS,
    guidance=CFG,
    encoders=(Encoder("text_encoder", "tokenizer", LENGTH.name, without=VISION_UNUSED, stacks_all=True),),
    stand_ins=("vae", "safety_checker"),
)

VIDEO_TEXT_SIDES = (
    *(_HUNYUAN_VIDEO, _HUNYUAN_VIDEO_I2V, _HUNYUAN_VIDEO_15, _WAN, _SKYREELS, _LTX, _LTX2, _COGVIDEOX, _MOCHI),
    *(_ALLEGRO, _EASYANIMATE, _KANDINSKY_PICTURES, _KANDINSKY_VIDEO, _COSMOS, _COSMOS_25),
)
