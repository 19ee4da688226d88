"""Tokenizers of the real classes, made in code: they save, load again, and give the same tokens."""

from __future__ import annotations

import json
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

#: CLIP's sequence length.
TOKENS = 77

_ASCII = [chr(code) for code in range(33, 127)]

#: What the chat models below are asked with, and what is asked of them.
TEXTS = (
    "a cat in rain",
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:",
    "You are a helpful assistant.",
    "user assistant system think",
)

_IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_THINK = ("<think>", "</think>")

#: Qwen's, as far as pipelines use it: text as a string or in parts, pictures among them, thinking or not.
_QWEN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)

_MISTRAL_CHAT = (
    "<s>{% for message in messages %}{% if message.role == 'system' %}[SYSTEM_PROMPT]{% else %}[INST]{% endif %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}"
    "{% if message.role == 'system' %}[/SYSTEM_PROMPT]{% else %}[/INST]{% endif %}{% endfor %}"
)

_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def clip(pad: str = "<|endoftext|>", *, tokens: int = TOKENS) -> Any:
    """A CLIPTokenizer over bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in plain] + [chr(256 + index) for index in range(256 - len(plain))]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=tokens)


def t5() -> Any:
    """A T5Tokenizer whose pieces are letters and some words; UMT5, mT5 and pile-T5 have the same class."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in _ASCII] + [("▁a", -2.5), ("▁cat", -2.5), ("▁rain", -2.5)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def byt5() -> Any:
    """ByT5's, which has no files."""
    return transformers.ByT5Tokenizer()


def bert() -> Any:
    """A BertTokenizer of letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list(".,!?\"'-0123456789")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {word: index for index, word in enumerate(words)}
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=TOKENS)


def gemma() -> Any:
    """A GemmaTokenizer of bytes and letters, which pads at the left by itself."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<image_soft_token>"]
    words += [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *_ASCII]
    vocabulary = {word: index for index, word in enumerate(words)}
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=1024)


def qwen(*templates: str) -> Any:
    """A Qwen2Tokenizer trained on what the pipeline wraps around its prompts.

    So trained, a template has about as many tokens as in the real one, and the constant number of tokens that a
    pipeline cuts off leaves the prompt.
    """
    core = _bytes_trained([*TEXTS, *templates], (*_IM, *_VISION, *_THINK), _QWEN_WORDS)
    model = json.loads(core.to_str())["model"]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        additional_special_tokens=[*_IM[:2], *_VISION],
        model_max_length=4096,
    )
    tokenizer.chat_template = _QWEN_CHAT
    return tokenizer


def llama(*templates: str) -> Any:
    """Llama 3's: bytes, with a token at the beginning."""
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"}
    others = ["<|start_header_id|>", "<|end_header_id|>", "<image>"]
    core = _bytes_trained([*TEXTS, *templates], (*names.values(), *others), _QWEN_WORDS)
    _put_before(core, "<|begin_of_text|>")
    return _fast(core, names, others, model_max_length=2048)


def mistral() -> Any:
    """Mistral's with its chat template, padding at the left."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    others = ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    core = _bytes_trained(list(TEXTS), (*names.values(), *others, "[IMG]"), _QWEN_WORDS)
    tokenizer = _fast(core, names, others, padding_side="left", model_max_length=4096)
    tokenizer.chat_template = _MISTRAL_CHAT
    return tokenizer


def glm() -> Any:
    """GLM-4's, which puts two tokens before every text."""
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    others = ["[gMASK]", "<sop>"]
    core = _bytes_trained(list(TEXTS), ("<|endoftext|>", *others), _QWEN_WORDS)
    _put_before(core, *others)
    return _fast(core, names, others, padding_side="left", model_max_length=2048)


def _fast(core: Tokenizer, names: dict[str, str], others: list[str], **options: Any) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, additional_special_tokens=others, **names, **options
    )


def _put_before(core: Tokenizer, *tokens: str) -> None:
    core.post_processor = processors.TemplateProcessing(
        single=f"{' '.join(tokens)} $A", special_tokens=[(token, core.token_to_id(token)) for token in tokens]
    )


def _bytes_trained(texts: list[str], specials: tuple[str, ...], words: str) -> Tokenizer:
    """Byte-level BPE that has seen ``texts``."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=1,
        initial_alphabet=alphabet,
        special_tokens=list(specials),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return core
