"""What each technique changes in the estimate, as data.  A new technique is a row.

A field that is None says nothing; two techniques of one stack may not say different things about one field.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import RequestError
from .types import Way

#: What is on the device at a time: all parts; the part that runs; the denoiser and the decoder, then the decoder;
#: or single layers, of which only the activations are counted.
Resident = Literal["all", "one", "phase", "layers"]

Decoder = Literal["full", "tiny", "exact", "tiled", "remote"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Of one technique, or of a whole stack.

    Attributes:
        half: Dtype of weights and activations; float32 without.
        linear_bytes: Of a number in the weights of the denoiser's linear layers.
        convolution_bytes: The same of its convolutions.
        text_linear_bytes: The same of T5's linear layers, but for those that transformers never narrows.
        loads_narrow: Whether the denoiser is narrowed while it is loaded, on the device, so that the host never
            holds it as it was.  T5 always is.
        prompts_first: Whether prompts are encoded and the encoders freed before anything else is loaded.
        pins: Whether weights that wait in the host's memory are pinned there.
        attention: How the denoiser attends.
        fuses: Whether the projections of attention exist twice.
        resident: See :data:`Resident`.
        decoder: See :data:`Decoder`.
        fixes_vae: Whether the VAE's weights survive float16, so that it does not leave it.
        slices: Whether a batch is decoded one by one.
        steps: Of denoising.
        guided: Part of the steps that run under guidance.
        base: Part of the steps that the base runs, the refiner runs the others.
        refiner_calls: Calls of the refiner after all steps of the base.
        full_every: Of how many forwards one is whole.
        cheap: What the others cost, as a part of a whole one, by pipeline.
        work: Of a forward, as a part of what it was, by pipeline.
        unknown: What the estimate cannot tell, for people.
    """

    half: Literal["float16", "bfloat16"] | None = None
    linear_bytes: float | None = None
    convolution_bytes: float | None = None
    text_linear_bytes: float | None = None
    loads_narrow: bool | None = None
    prompts_first: bool | None = None
    pins: bool | None = None
    attention: Way | None = None
    fuses: bool | None = None
    resident: Resident | None = None
    decoder: Decoder | None = None
    fixes_vae: bool | None = None
    slices: bool | None = None
    steps: int | None = None
    guided: float | None = None
    base: float | None = None
    refiner_calls: int | None = None
    full_every: int | None = None
    cheap: tuple[tuple[str, float], ...] | None = None
    work: tuple[tuple[str, float], ...] | None = None
    unknown: tuple[str, ...] = ()


def effect_of(names: Sequence[str]) -> Effect:
    """What a stack changes.

    Raises:
        RequestError: for a name that is none, and for two that say different things.
    """
    said: dict[str, tuple[str, Any]] = {}
    unknown: list[str] = []
    for name in names:
        row = _row(name)
        unknown += [f"{name}: {text}" for text in row.unknown]
        for key in _FIELDS:
            value = getattr(row, key)
            if value is None:
                continue
            if key in said and said[key][1] != value:
                raise RequestError(
                    "two techniques that exclude each other",
                    saw=f"{said[key][0]} and {name}",
                    expected="one of them",
                )
            said[key] = (name, value)
    return Effect(**{key: value for key, (_, value) in said.items()}, unknown=tuple(unknown))


_FIELDS = tuple(field.name for field in dataclasses.fields(Effect) if field.name != "unknown")


def _row(name: str) -> Effect:
    if name not in EFFECTS:
        near = difflib.get_close_matches(name, EFFECTS, n=1)
        raise RequestError(
            "unknown technique",
            saw=repr(name),
            expected="a name that `hybridge lab list` shows",
            hint=near[0] if near else None,
        )
    return EFFECTS[name]


def _unknown(text: str, **fields: Any) -> Effect:
    return Effect(unknown=(text,), **fields)


_NOTHING = Effect()
_COMPILED = _unknown("a compiler plans its own buffers; they are taken to be eager torch's")
_ELSEWHERE = _unknown("it runs elsewhere; nothing is known of its memory")
_CACHE = _unknown("what it keeps between steps is not counted, nor is the work that it saves")

#: Blocks of 64 numbers in four bits, with a float32 maximum each.
_NF4_BYTES = 0.5 + 4 / 64
_WIDENED = "a layer is widened while it runs, which takes up to 0.1 GB and time that are not counted"

EFFECTS: dict[str, Effect] = {
    "fp16": Effect(half="float16"),
    "bf16": Effect(half="bfloat16"),
    "tf32": _unknown("it changes speed; and cuDNN's workspace, in a way that nobody has written down"),
    "fp8-storage": _unknown(
        "norms and embeddings, which stay wide, are counted as narrow where they are linear",
        linear_bytes=1,
        convolution_bytes=1,
    ),
    "cuda-versions": _NOTHING,
    "attention-vanilla": Effect(attention="matrix"),
    "attention-sdpa": Effect(attention="fused"),
    "attention-slicing": Effect(attention="sliced"),
    "attention-backend": _NOTHING,
    "xformers": Effect(attention="fused"),
    "vae-fp16-fix": Effect(fixes_vae=True),
    "vae-slicing": Effect(slices=True),
    "vae-tiling": Effect(decoder="tiled"),
    "tiny-vae": Effect(decoder="tiny"),
    "exact-vae": Effect(decoder="exact"),
    "channels-last": _unknown("cuDNN's workspace is another one for channels-last"),
    "freeu": _NOTHING,
    "fused-qkv": Effect(fuses=True),
    "steps-25": Effect(steps=25),
    "steps-30": Effect(steps=30),
    "cfg-cutoff-50": Effect(guided=0.5),
    "cfg-cutoff-75": Effect(guided=0.75),
    "refiner-ensemble-80": Effect(base=0.8),
    "refiner-ensemble-90": Effect(base=0.9),
    # strength 0.3 of 10 and of 20 steps
    "refiner-img2img-10": Effect(base=1.0, refiner_calls=3),
    "refiner-img2img-20": Effect(base=1.0, refiner_calls=6),
    "batch-processing": Effect(resident="phase"),
    "remote-vae": Effect(decoder="remote"),
    "remote-text": _unknown("no server has an endpoint for prompts yet, so the encoders are counted"),
    # interval 3, branch 0; counted with FlopCounterMode on the meta device: 0.2 of SDXL's 13.52 TFLOP
    "deepcache": _unknown(
        "what it keeps between steps is not counted", full_every=3, cheap=(("sdxl", 0.2 / 13.52),)
    ),
    "pab": _CACHE,
    "taylorseer": _CACHE,
    "taylorseer-defaults": _NOTHING,
    "first-block-cache": _CACHE,
    "sea-cache": _CACHE,
    "mag-cache": _CACHE,
    "faster-cache": _CACHE,
    "para-attention": _CACHE,
    "cache-dit": _CACHE,
    "tome": _NOTHING,
    "tome-all": Effect(work=(("sdxl", 11.60 / 13.52),)),
    "tgate": _unknown("work after the gate (6.21 of SDXL's 13.52 TFLOP) is counted as before it"),
    "compile": _COMPILED,
    "compile-regional": _COMPILED,
    "stable-fast": _COMPILED,
    "onediff": _COMPILED,
    "torchao-int8": Effect(linear_bytes=1),
    "torchao-int8-dynamic": Effect(linear_bytes=1),
    "torchao-fp8": Effect(linear_bytes=1),
    # groups of 128 with a scale and a zero of two bytes each
    "torchao-int4": Effect(linear_bytes=0.5 + 4 / 128),
    "bitsandbytes-int8": Effect(linear_bytes=1),
    "bitsandbytes-nf4": _unknown(_WIDENED, linear_bytes=_NF4_BYTES, loads_narrow=True),
    # What the adviser's code does and no study measures: of text encoders.
    "prompts-first": Effect(prompts_first=True),
    "text-int8": Effect(text_linear_bytes=1),
    "text-nf4": _unknown(_WIDENED, text_linear_bytes=_NF4_BYTES),
    "quanto-int8": Effect(linear_bytes=1, convolution_bytes=1),
    "sdnq-int8": _unknown("it leaves small layers as they are, which are counted as narrow", linear_bytes=1),
    "torch-ao-dynamic": Effect(linear_bytes=1),
    "model-offload": Effect(resident="one"),
    "sequential-offload": Effect(resident="layers"),
    "disk-offload": Effect(resident="layers"),
    "group-offload": Effect(resident="layers", pins=True),
    "group-offload-disk": Effect(resident="layers"),
    "openvino": _COMPILED,
    "onnxruntime": _COMPILED,
    "tensorrt": _COMPILED,
    "xdit": _ELSEWHERE,
    "pruna": _ELSEWHERE,
    "core-ml": _ELSEWHERE,
    "mps": _ELSEWHERE,
    "gaudi": _ELSEWHERE,
    "neuron": _ELSEWHERE,
}
