"""Parts that several rows of :mod:`hybridge.models.text_sides` share."""

from __future__ import annotations

from .text_side import Call, Encoder, Guidance, Output, Parameter

PROMPT = Parameter("prompt", "prompt")
NEGATIVE = Parameter("negative_prompt", "negative")
PROMPT_2 = Parameter("prompt_2", "prompt")
NEGATIVE_2 = Parameter("negative_prompt_2", "negative")
CLEAN = Parameter("clean_caption", "flag")


def length(most: int) -> Parameter:
    """Return the parameter for the number of tokens, up to ``most``."""
    return Parameter("max_sequence_length", "length", most=most)


#: The parameter for the number of tokens in most pipelines.
LENGTH = length(512)

#: Number of CLIP's positions, the most tokens that it reads.
CLIP_TOKENS = 77
CLIP = Encoder("text_encoder", "tokenizer", CLIP_TOKENS)

CFG = Guidance()
EMBEDS = (Output("prompt_embeds"),)
POOLED = (Output("prompt_embeds"), Output("pooled_prompt_embeds"))

#: Outputs whose padding is masked, so that its values do not matter.
MASKED = (Output("prompt_embeds", mask="prompt_attention_mask"), Output("prompt_attention_mask"))
PAIRS_RETURNED = (
    *("prompt_embeds", "negative_prompt_embeds"),
    *("prompt_attention_mask", "negative_prompt_attention_mask"),
)
PAIR_CALL = Call(("prompt_embeds", "negative_prompt_embeds"))
MASKED_CALL = Call(
    ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
)

#: The part of a language model that turns hidden states into words.
LLM_UNUSED = ("lm_head",)

#: The parts of a vision-language model that read pictures, by all names that transformers has used.
VISION_UNUSED = (
    *("model.visual", "visual", "model.vision_tower", "vision_tower"),
    *("model.multi_modal_projector", "multi_modal_projector", *LLM_UNUSED),
)

#: Libraries with which diffusers cleans captions.  Without them it cleans differently, so the embeddings differ.
CLEANERS = ("bs4", "ftfy")
