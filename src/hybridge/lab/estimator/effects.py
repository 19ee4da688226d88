"""What each technique changes in the estimate: the ``effect`` of its row in the catalogue.

A field that is None says nothing; two techniques of one stack may not say different things about one field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ...errors import RequestError
from ..harness.names import look_up
from ..harness.typed import parse
from ..techniques.facts import FACTS, KNOWN
from .types import ConvAlgorithm

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
        fuses: Whether the projections of attention exist twice.
        fixes_vae: Whether the VAE's weights survive float16, so that it does not leave it.
        slices: Whether a batch is decoded one by one.
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
    attention: ConvAlgorithm | None = None
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
    cheap: dict[str, float] | None = None
    work: dict[str, float] | None = None
    unknown: tuple[str, ...] = ()


def effect_of(names: Sequence[str]) -> Effect:
    """What a stack changes.

    Raises:
        RequestError: for a name that is none, and for two that say different things.
    """
    said: dict[str, tuple[str, Any]] = {}
    unknown: list[str] = []
    for name in names:
        row = look_up("technique", name, EFFECTS, KNOWN)
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


#: By technique; ``note`` in the catalogue says where the numbers of a row are from.
EFFECTS: dict[str, Effect] = {
    name: parse(Effect, facts.effect, f"the effect of {name}") for name, facts in FACTS.items()
}

# What the adviser's code does and no study measures: of text encoders.
EFFECTS |= {
    "prompts-first": Effect(prompts_first=True),
    "text-int8": Effect(text_linear_bytes=1),
    "text-nf4": replace(
        EFFECTS["bitsandbytes-nf4"],
        text_linear_bytes=EFFECTS["bitsandbytes-nf4"].linear_bytes,
        linear_bytes=None,
        loads_narrow=None,
    ),
}
