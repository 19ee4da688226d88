"""The text encoders of diffusers' pipelines: one row for all classes that handle text in the same way."""

from __future__ import annotations

from .text_parts import (
    CFG,
    CLEAN,
    CLEANERS,
    EMBEDS,
    LENGTH,
    LLM_UNUSED,
    MASKED,
    MASKED_CALL,
    NEGATIVE,
    NEGATIVE_2,
    PAIR_CALL,
    PAIRS_RETURNED,
    PROMPT,
    PROMPT_2,
    VISION_UNUSED,
    length,
)
from .text_side import Call, Encoder, Guidance, Output, Parameter, TextSide
from .text_sides_flux import FLUX_TEXT_SIDES
from .text_sides_sd import SD_TEXT_SIDES
from .text_sides_video import VIDEO_TEXT_SIDES

# ------------------------------------------------------------------------------------ Qwen, Z-Image

_QWEN_OUTPUTS = (Output("prompt_embeds"), Output("prompt_embeds_mask"))
_QWEN_GUIDANCE = Guidance(("true_cfg_scale",), only_if_given=True)
_QWEN_CALL = Call(("prompt_embeds", "prompt_embeds_mask"), negative="call")
_QWEN_LENGTH = length(1024)

_QWEN = TextSide(
    name="Qwen-Image",
    classes=(
        "QwenImagePipeline",
        "QwenImageImg2ImgPipeline",
        "QwenImageInpaintPipeline",
        "QwenImageControlNetPipeline",
        "QwenImageControlNetInpaintPipeline",
    ),
    parameters=(PROMPT, NEGATIVE, _QWEN_LENGTH),
    calls=(_QWEN_CALL,),
    outputs=_QWEN_OUTPUTS,
    guidance=_QWEN_GUIDANCE,
    encoders=(
        # Its tokenizer cuts at 1024 tokens, and its embeddings are cut at the length that is asked for.
        Encoder(
            "text_encoder",
            "tokenizer",
            LENGTH.name,
            extra_tokens=34,
            cut_with=0,
            fills=False,
            without=VISION_UNUSED,
        ),
    ),
    pads_to_longest=True,
)

_QWEN_SEEING = (
    Encoder("text_encoder", "tokenizer", LENGTH.name, extra_tokens=1500, fills=False, without=LLM_UNUSED),
)

_QWEN_EDIT = TextSide(
    name="Qwen-Image-Edit",
    classes=("QwenImageEditPipeline", "QwenImageEditInpaintPipeline"),
    parameters=(PROMPT, NEGATIVE, _QWEN_LENGTH),
    calls=(_QWEN_CALL,),
    outputs=_QWEN_OUTPUTS,
    guidance=_QWEN_GUIDANCE,
    encoders=_QWEN_SEEING,
    others=("processor",),
    pads_to_longest=True,
    picture="qwen edit",
)

_QWEN_EDIT_PLUS = TextSide(
    name="Qwen-Image-Edit-Plus",
    classes=("QwenImageEditPlusPipeline",),
    parameters=(PROMPT, NEGATIVE, _QWEN_LENGTH),
    calls=(_QWEN_CALL,),
    outputs=_QWEN_OUTPUTS,
    guidance=_QWEN_GUIDANCE,
    encoders=_QWEN_SEEING,
    others=("processor",),
    pads_to_longest=True,
    picture="qwen edit plus",
)

_Z_IMAGE = TextSide(
    name="Z-Image",
    classes=(
        "ZImagePipeline",
        "ZImageImg2ImgPipeline",
        "ZImageInpaintPipeline",
        "ZImageControlNetPipeline",
        "ZImageControlNetInpaintPipeline",
    ),
    parameters=(PROMPT, NEGATIVE, length(1024)),
    calls=(PAIR_CALL,),
    outputs=(Output("prompt_embeds", layout="list"),),
    guidance=Guidance(above=0.0),
    encoders=(Encoder("text_encoder", "tokenizer", LENGTH.name),),
)

# ----------------------------------------------------------------------------------- other pictures

_LUMINA2 = TextSide(
    name="Lumina 2",
    classes=("Lumina2Pipeline",),
    parameters=(PROMPT, NEGATIVE, Parameter("system_prompt", "text"), LENGTH),
    calls=(MASKED_CALL,),
    outputs=MASKED,
    guidance=CFG,
    encoders=(Encoder("text_encoder", "tokenizer", LENGTH.name),),
)

_HIDREAM = TextSide(
    name="HiDream",
    classes=("HiDreamImagePipeline",),
    parameters=(
        PROMPT,
        PROMPT_2,
        Parameter("prompt_3", "prompt"),
        Parameter("prompt_4", "prompt"),
        NEGATIVE,
        NEGATIVE_2,
        Parameter("negative_prompt_3", "negative"),
        Parameter("negative_prompt_4", "negative"),
        LENGTH,
    ),
    calls=(
        Call(
            (
                "prompt_embeds_t5",
                "negative_prompt_embeds_t5",
                "prompt_embeds_llama3",
                "negative_prompt_embeds_llama3",
                "pooled_prompt_embeds",
                "negative_pooled_prompt_embeds",
            )
        ),
    ),
    outputs=(
        Output("prompt_embeds_t5"),
        Output("prompt_embeds_llama3", layout="batch-axis-1"),
        Output("pooled_prompt_embeds"),
    ),
    guidance=CFG,
    encoders=(
        Encoder("text_encoder", "tokenizer", LENGTH.name),
        Encoder("text_encoder_2", "tokenizer_2", LENGTH.name),
        Encoder("text_encoder_3", "tokenizer_3", LENGTH.name),
        Encoder("text_encoder_4", "tokenizer_4", LENGTH.name, without=LLM_UNUSED, stacks_all=True),
    ),
)

_INSTRUCTION = Parameter("complex_human_instruction", "texts")

_SANA = TextSide(
    name="Sana",
    classes=("SanaPipeline", "SanaPAGPipeline", "SanaControlNetPipeline"),
    parameters=(PROMPT, NEGATIVE, CLEAN, LENGTH, _INSTRUCTION),
    calls=(MASKED_CALL,),
    outputs=(Output("prompt_embeds"), Output("prompt_attention_mask")),
    guidance=CFG,
    encoders=(Encoder("text_encoder", "tokenizer", LENGTH.name, extra_tokens=250),),
    libraries=CLEANERS,
)

_SANA_SPRINT = TextSide(
    name="Sana Sprint",
    classes=("SanaSprintPipeline", "SanaSprintImg2ImgPipeline"),
    parameters=(PROMPT, CLEAN, LENGTH, _INSTRUCTION),
    calls=(Call(("prompt_embeds", "prompt_attention_mask"), negative=None),),
    outputs=(Output("prompt_embeds"), Output("prompt_attention_mask")),
    guidance=None,
    encoders=(Encoder("text_encoder", "tokenizer", LENGTH.name, extra_tokens=250),),
    libraries=CLEANERS,
)

_PIXART = TextSide(
    name="PixArt",
    classes=("PixArtAlphaPipeline", "PixArtSigmaPipeline", "PixArtSigmaPAGPipeline"),
    parameters=(PROMPT, NEGATIVE, CLEAN, LENGTH),
    calls=(MASKED_CALL,),
    outputs=MASKED,
    guidance=CFG,
    encoders=(Encoder("text_encoder", "tokenizer", LENGTH.name),),
    libraries=CLEANERS,
)

_AURAFLOW = TextSide(
    name="AuraFlow",
    classes=("AuraFlowPipeline",),
    parameters=(PROMPT, NEGATIVE, LENGTH),
    calls=(MASKED_CALL,),
    outputs=(Output("prompt_embeds"), Output("prompt_attention_mask")),
    guidance=CFG,
    encoders=(Encoder("text_encoder", "tokenizer", LENGTH.name),),
)

_HUNYUAN_DIT = TextSide(
    name="Hunyuan-DiT",
    classes=("HunyuanDiTPipeline", "HunyuanDiTPAGPipeline", "HunyuanDiTControlNetPipeline"),
    parameters=(PROMPT, NEGATIVE),
    calls=(
        Call(PAIRS_RETURNED, arguments={"text_encoder_index": 0, "max_sequence_length": 77}),
        Call(
            tuple(f"{name}_2" for name in PAIRS_RETURNED),
            arguments={"text_encoder_index": 1, "max_sequence_length": 256},
        ),
    ),
    outputs=(
        Output("prompt_embeds"),
        Output("prompt_attention_mask"),
        Output("prompt_embeds_2"),
        Output("prompt_attention_mask_2"),
    ),
    guidance=CFG,
    encoders=(Encoder("text_encoder", "tokenizer", 77), Encoder("text_encoder_2", "tokenizer_2", 256)),
    takes_dtype=True,
)

_HUNYUAN_IMAGE = TextSide(
    name="HunyuanImage 2.1",
    classes=("HunyuanImagePipeline",),
    parameters=(PROMPT, NEGATIVE),
    calls=(
        Call(("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2"), negative="call"),
    ),
    outputs=(
        Output("prompt_embeds"),
        Output("prompt_embeds_mask"),
        Output("prompt_embeds_2"),
        Output("prompt_embeds_mask_2"),
    ),
    guidance=Guidance((), guider="guider", text=""),
    encoders=(
        Encoder("text_encoder", "tokenizer", 1000, extra_tokens=34, without=VISION_UNUSED),
        Encoder("text_encoder_2", "tokenizer_2", 128),
    ),
    count="batch_size",
    # Prompts without quoted text have zeros in float32, in which those of the others are joined with them.
    mixes_dtypes=True,
)

_COGVIEW4 = TextSide(
    name="CogView4",
    classes=("CogView4Pipeline", "CogView4ControlPipeline"),
    parameters=(PROMPT, NEGATIVE, length(1024)),
    calls=(PAIR_CALL,),
    outputs=EMBEDS,
    guidance=CFG,
    encoders=(Encoder("text_encoder", "tokenizer", LENGTH.name, fills=False),),
    pads_to_longest=True,
)

_BRIA = TextSide(
    name="Bria 3.2",
    classes=("BriaPipeline",),
    parameters=(PROMPT, NEGATIVE, LENGTH),
    calls=(Call(("prompt_embeds", "negative_prompt_embeds", None)),),
    outputs=EMBEDS,
    guidance=Guidance(zeros_if=True),
    encoders=(Encoder("text_encoder", "tokenizer", LENGTH.name, fills=False),),
    stand_ins=("vae", "transformer"),
)

_OVIS = TextSide(
    name="Ovis-Image",
    classes=("OvisImagePipeline",),
    parameters=(PROMPT, NEGATIVE, length(256)),
    calls=(Call(("prompt_embeds", "negative_prompt_embeds", None, None)),),
    outputs=EMBEDS,
    guidance=CFG,
    encoders=(Encoder("text_encoder", "tokenizer", LENGTH.name, extra_tokens=28),),
)

_LONGCAT = TextSide(
    name="LongCat-Image",
    classes=("LongCatImagePipeline",),
    parameters=(PROMPT, NEGATIVE),
    calls=(Call(("prompt_embeds", None), negative="call"),),
    outputs=EMBEDS,
    guidance=Guidance(text=""),
    encoders=(Encoder("text_encoder", "tokenizer", 512, extra_tokens=50, cut_with=0, without=VISION_UNUSED),),
    call_with={"enable_prompt_rewrite": False},
    counts_absent_prompts=True,
)

_ROWS = (
    *SD_TEXT_SIDES,
    *FLUX_TEXT_SIDES,
    *(_QWEN, _QWEN_EDIT, _QWEN_EDIT_PLUS, _Z_IMAGE, _LUMINA2, _HIDREAM, _SANA, _SANA_SPRINT, _PIXART, _AURAFLOW),
    *(_HUNYUAN_DIT, _HUNYUAN_IMAGE, _COGVIEW4, _BRIA, _OVIS, _LONGCAT),
    *VIDEO_TEXT_SIDES,
)

_BY_CLASS = {name: row for row in _ROWS for name in row.classes}


def known_text_sides() -> tuple[TextSide, ...]:
    """Return all rows."""
    return _ROWS


def text_side_for(class_name: str) -> TextSide | None:
    """Return the row of a diffusers pipeline class, or None if its text encoders are unknown."""
    return _BY_CLASS.get(class_name)
