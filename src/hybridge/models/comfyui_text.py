"""How ComfyUI encodes text: which hidden states, how many tokens, which padding, as data.

ComfyUI's text embeddings differ from those of diffusers' pipelines.  It reads weights, as in ``(word:1.3)``; it
gives CLIP as many chunks of 77 tokens as a text needs; it pads T5 to another length, which changes every vector;
and it has more than one tensor for a text.  A family here is a model as ComfyUI has it; pipelines that are in none
are refused, because a near miss renders a picture without an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .text_side import TextSide

#: Texts are encoded for pipelines of diffusers, or for ComfyUI's nodes.
Convention = Literal["diffusers", "comfyui"]

#: The argument for ComfyUI's node *CLIP Set Last Layer*.
CLIP_LAYER = "clip_layer"

#: The lowest value of that node.
LEAST_CLIP_LAYER = -24

#: Tokens of a chunk for CLIP.
_CHUNK = 77


@dataclass(frozen=True, slots=True)
class Tower:
    """One text encoder as ComfyUI uses it.

    Attributes:
        encoder: Name of the pipeline's component.
        tokenizer: Name of its tokenizer's component.
        prompt: The argument with its text; without that argument, ``prompt``.
        chunk: Tokens of a chunk; None if a text is never divided.
        least: Tokens to which a shorter text is padded.
        has_start: Whether a text begins with a token of its own.
        pads_with_end: Whether padding is the last token again; else it is token 0.
        layer: The layer whose output is used, from the end; None for the last, after the final norm.
        is_normed: Whether the final norm is applied to the output of ``layer``.
        pooled: The vector of the whole text, after the final norm: as it is, or projected.
        is_masked: Whether padding is hidden from attention, and then set to zero.
        optional: Whether the model may be without it.
    """

    encoder: str
    tokenizer: str
    prompt: str = "prompt"
    chunk: int | None = _CHUNK
    least: int = 0
    has_start: bool = True
    pads_with_end: bool = True
    layer: int | None = None
    is_normed: bool = True
    pooled: Literal["plain", "projected"] | None = None
    is_masked: bool = False
    optional: bool = False

    @property
    def is_clip(self) -> bool:
        """Whether it is divided into chunks, and *CLIP Set Last Layer* applies to it."""
        return self.chunk is not None


@dataclass(frozen=True, slots=True)
class ChatTower:
    """A language model as ComfyUI uses it.

    Attributes:
        encoder: Name of the pipeline's component.
        tokenizer: Name of its tokenizer's component.
        template: The text around a prompt, with ``{}`` in its place.
        layer: The layer whose output is used, from the end; None for the last, after the final norm.
        layers: Numbers of the hidden states that are used side by side instead, 0 for the token embeddings.
        least: Tokens to which a shorter text is padded, behind a mask.
        has_start: Whether a text begins with a token of its own.
        cuts: What is cut off: nothing, what stands before the prompt (Qwen), or that and what follows the end of
            the user's turn (Llama).
        reads_weights: Whether weights in a text count.
        tells_mask: Whether the mask is passed on even if nothing is masked.
    """

    encoder: str
    tokenizer: str
    template: str
    layer: int | None = None
    layers: tuple[int, ...] = ()
    least: int = 1
    has_start: bool = False
    cuts: Literal["qwen", "llama"] | None = None
    reads_weights: bool = False
    tells_mask: bool = False


@dataclass(frozen=True, slots=True)
class ComfyFamily:
    """A model as ComfyUI has it.

    Attributes:
        name: Its name for users.
        side: The first class of the :class:`~.text_side.TextSide` of its pipelines in diffusers.
        towers: Its text encoders.
        join: How their states become one tensor: ``only``: there is one.  ``channels``: side by side.  ``sd3``:
            CLIP's side by side, filled up with zeros to the width of T5's, which follow.  ``last``: those of the
            last encoder; others give the pooled vector.
        pools: Encoders whose pooled vectors, side by side, are the model's.
        chat: The language model whose states are the model's; ``towers`` give the pooled vector, if there is one.
    """

    name: str
    side: str
    towers: tuple[Tower, ...] = ()
    join: Literal["only", "channels", "sd3", "last"] = "only"
    pools: tuple[str, ...] = ()
    chat: ChatTower | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The arguments that a request may have."""
        # Beside CLIP, the node would change the layer of T5 or of a language model, which nobody means by it.
        clip = (CLIP_LAYER,) if self.chat is None and all(tower.is_clip for tower in self.towers) else ()
        return (*dict.fromkeys(("prompt", *(tower.prompt for tower in self.towers))), *clip)


def _clip_g(prompt: str) -> Tower:
    """OpenCLIP's bigG."""
    return Tower(
        *("text_encoder_2", "tokenizer_2", prompt),
        pads_with_end=False,
        layer=-2,
        is_normed=False,
        pooled="projected",
    )


def _t5(number: int, least: int, *, is_masked: bool = False, optional: bool = False) -> Tower:
    suffix = "" if number == 1 else f"_{number}"
    return Tower(
        *(f"text_encoder{suffix}", f"tokenizer{suffix}", f"prompt{suffix}"),
        chunk=None,
        least=least,
        has_start=False,
        pads_with_end=False,
        is_masked=is_masked,
        optional=optional,
    )


def _chat(name: str, side: str, template: str, **how: Any) -> ComfyFamily:
    return ComfyFamily(name, side, chat=ChatTower("text_encoder", "tokenizer", template, **how))


#: A turn of the user and the beginning of the answer, as Qwen's models have them.
_QWEN_TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

_QWEN_IMAGE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial"
    " relationships of the objects and background:<|im_end|>\n" + _QWEN_TURN
)

_FLUX2 = (
    "[SYSTEM_PROMPT]You are an AI that reasons about image descriptions. You give structured responses focusing on"
    " object relationships, object\nattribution and actions without speculation.[/SYSTEM_PROMPT][INST]{}[/INST]"
)

_HUNYUAN_VIDEO = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: 1. The"
    " main content and theme of the video.2. The color, shape, size, texture, quantity, text, and spatial"
    " relationships of the objects.3. Actions, events, behaviors temporal relationships, physical movement changes"
    " of the objects.4. background environment, light, style and atmosphere.5. camera angles, movements, and"
    " transitions used in the video:<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)

COMFY_FAMILIES = (
    ComfyFamily(
        "Stable Diffusion 1",
        "StableDiffusionPipeline",
        (Tower("text_encoder", "tokenizer", pooled="plain"),),
        "only",
        ("text_encoder",),
    ),
    ComfyFamily(
        "Stable Diffusion XL",
        "StableDiffusionXLPipeline",
        (
            Tower("text_encoder", "tokenizer", layer=-2, is_normed=False, optional=True),
            _clip_g("prompt_2"),
        ),
        "channels",
        ("text_encoder_2",),
    ),
    ComfyFamily(
        "Stable Diffusion 3",
        "StableDiffusion3Pipeline",
        (
            Tower("text_encoder", "tokenizer", layer=-2, is_normed=False, pooled="plain"),
            _clip_g("prompt_2"),
            _t5(3, 77, optional=True),
        ),
        "sd3",
        ("text_encoder", "text_encoder_2"),
    ),
    ComfyFamily(
        "FLUX.1",
        "FluxPipeline",
        (Tower("text_encoder", "tokenizer", pooled="plain"), _t5(2, 256)),
        "last",
        ("text_encoder",),
    ),
    ComfyFamily("Wan", "WanPipeline", (_t5(1, 512, is_masked=True),), "only"),
    ComfyFamily(
        "HunyuanVideo",
        "HunyuanVideoPipeline",
        (Tower("text_encoder_2", "tokenizer_2", pooled="plain"),),
        pools=("text_encoder_2",),
        chat=ChatTower(
            "text_encoder",
            "tokenizer",
            _HUNYUAN_VIDEO,
            layer=-3,
            has_start=True,
            cuts="llama",
            reads_weights=True,
        ),
    ),
    _chat("Qwen-Image", "QwenImagePipeline", _QWEN_IMAGE, cuts="qwen"),
    _chat("Z-Image", "ZImagePipeline", _QWEN_TURN, layer=-2, tells_mask=True),
    _chat("FLUX.2", "Flux2Pipeline", _FLUX2, layers=(10, 20, 30), has_start=True, tells_mask=True),
    _chat(
        "FLUX.2 Klein",
        "Flux2KleinPipeline",
        _QWEN_TURN + "<think>\n\n</think>\n\n",
        layers=(9, 18, 27),
        least=512,
        tells_mask=True,
    ),
)

_BY_SIDE = {family.side: family for family in COMFY_FAMILIES}


def comfy_family(side: TextSide) -> ComfyFamily | None:
    """Return the family of a pipeline's text encoders; None where ComfyUI's convention is not known for them."""
    return _BY_SIDE.get(side.classes[0])
