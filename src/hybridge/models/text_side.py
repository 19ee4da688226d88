"""Facts about a pipeline's text encoders that are known before they are loaded: their inputs and outputs.

There is one :class:`TextSide` for all pipeline classes whose ``encode_prompt`` and ``__call__`` handle text in the
same way; the rows are in :mod:`hybridge.models.text_sides`.  No value here repeats a default of diffusers: an
option that is not given has the default of the installed pipeline's ``__call__``, which may differ from that of
``encode_prompt``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

#: Prefix of the arguments and tensors that belong to the negative prompt.
NEGATIVE_PREFIX = "negative_"

ParameterKind = Literal[
    "prompt", "negative", "length", "clip_skip", "flag", "layers", "text", "texts", "template", "whole"
]

#: The position of the prompts in a tensor: along axis 0, as items of a list, along axis 1, or as cumulative sums.
Layout = Literal["batch", "list", "batch-axis-1", "cu_seqlens"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument about text.

    Attributes:
        name: Its name in ``__call__``.
        kind: ``prompt`` and ``negative`` are a string, a list of strings, or null; ``length`` is a number of
            tokens; ``clip_skip`` a number of layers, or null; ``flag`` a bool; ``layers`` a list of layers by their
            number; ``text`` a string or null; ``texts`` a list of strings or null; ``template`` an object with
            ``template``, which has one ``{}``, and ``crop_start``; ``whole`` a whole number or null.
        most: The largest value.
        above: For ``clip_skip``, how many of the encoder's hidden states it cannot reach.
    """

    name: str
    kind: ParameterKind
    most: int | None = None
    above: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor that ``__call__`` takes under the same name; its negative counterpart has a prefix.

    Attributes:
        name: The argument of ``__call__``.
        layout: The position of the prompts in the tensor.
        mask: The output whose zeros mark the padding of this one.  Set only if zeros in the padding give the same
            picture, so that the padding need not be sent.
    """

    name: str
    layout: Layout = "batch"
    mask: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of ``encode_prompt``.

    Attributes:
        returns: For each returned value, in order, the argument of ``__call__`` that takes it, or None if there is
            none.
        negative: ``argument`` if ``encode_prompt`` takes the negative prompt itself, ``call`` if it is called once
            more with the negative prompt in place of the prompt.
        arguments: Further arguments, the same for every request.
    """

    returns: tuple[str | None, ...]
    negative: Literal["argument", "call"] | None = "argument"
    arguments: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Guidance:
    """The conditions under which ``__call__`` uses a negative prompt.

    Attributes:
        scales: Arguments of ``__call__``; guidance is on when one of them is above ``above``.  Empty if a guider
            decides.
        above: The threshold of the scales.
        only_if_given: Whether guidance also needs a negative prompt: without one it is off.
        guider: The component that decides instead: guidance is on when it is enabled and has more than one
            condition.
        off_if: The entry of the pipeline's config that turns guidance off.
        zeros_if: When the negative embeddings of a missing negative prompt are zeros, which a pipeline makes
            without encoders: always, or if this entry of its config is true.
        text: The negative prompt that ``__call__`` passes to ``encode_prompt`` when none was given.
    """

    scales: tuple[str, ...] = ("guidance_scale",)
    above: float = 1.0
    only_if_given: bool = False
    guider: str | None = None
    off_if: str | None = None
    zeros_if: str | bool = False
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Encoder:
    """One text encoder and its tokenizer.

    Attributes:
        name: Name of the component.
        tokenizer: Name of the tokenizer component.
        tokens: Most tokens of a prompt: a number, or the parameter with the number.
        extra_tokens: Number of tokens that a template adds.
        cut_with: For pipelines that cut a prompt before its tokenizer does, or its embeddings afterwards: how many
            tokens of a template follow the prompt and count.  None where the tokenizer cuts.
        fills: Whether it also reads that many tokens for a short prompt.
        without: Paths of modules that do not affect the embeddings; they are not loaded.  A path that a class does
            not have is ignored: releases have different ones.
        layers: The path of the number of layers in its config, and the parameter that lists the layers to read;
            layers above the highest of these are not loaded.
        stacks_all: Whether the embeddings hold the hidden states of all layers.
        optional: Whether pipelines may omit it.
    """

    name: str
    tokenizer: str
    tokens: int | str
    extra_tokens: int = 0
    cut_with: int | None = None
    fills: bool = True
    without: tuple[str, ...] = ()
    layers: tuple[str, str] | None = None
    stacks_all: bool = False
    optional: bool = False


#: How a picture is prepared for ``encode_prompt``: the names of the engine's functions.
Picture = Literal["qwen edit", "qwen edit plus", "hunyuan video"]


@dataclass(frozen=True, slots=True)
class TextSide:
    """The text encoders of one or more pipeline classes.

    Attributes:
        name: Name for users and tests.
        classes: Names of the diffusers pipeline classes.
        parameters: The parameters that requests may have.
        calls: The calls of ``encode_prompt``.
        outputs: The tensors that result.
        guidance: When the negative prompt is used; None if a pipeline takes no negative embeddings.
        encoders: The text encoders.
        others: Further components that are needed, such as an image processor.
        stand_ins: Components whose config the pipeline's constructor or ``encode_prompt`` reads.  Their
            ``config.json`` is read, their weights are not.
        plain_tokenizers: Components that are saved as image processors but of which text needs only the tokenizer.
        count: The argument of ``encode_prompt`` for the number of prompts, if it does not count them itself.
        takes_dtype: Whether ``__call__`` passes the denoiser's dtype to ``encode_prompt``.
        call_with: Arguments that ``__call__`` needs together with embeddings, because its defaults would use the
            encoder.
        counts_absent_prompts: Whether ``encode_prompt`` uses the length of the list of prompts even if it is given
            embeddings, so that it must be wrapped in a pipeline without encoders.
        separates_empty: Whether an empty prompt in a batch changes the embeddings of the others, so that it is
            encoded separately.
        pads_to_longest: Whether the length of the embeddings depends on the longest prompt of a batch.
        mixes_dtypes: Whether the dtype of a prompt's embeddings depends on the other prompts of a batch.
        picture: How a picture is used for the embeddings; None if they depend only on text.
        libraries: Libraries that have to be installed in addition to transformers.
    """

    name: str
    classes: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    calls: tuple[Call, ...]
    outputs: tuple[Output, ...]
    guidance: Guidance | None
    encoders: tuple[Encoder, ...]
    others: tuple[str, ...] = ()
    stand_ins: tuple[str, ...] = ()
    plain_tokenizers: tuple[str, ...] = ()
    count: str | None = None
    takes_dtype: bool = False
    call_with: Mapping[str, object] = field(default_factory=dict)
    counts_absent_prompts: bool = False
    separates_empty: bool = False
    pads_to_longest: bool = False
    mixes_dtypes: bool = False
    picture: Picture | None = None
    libraries: tuple[str, ...] = ()

    @property
    def components(self) -> tuple[str, ...]:
        """Names of all components that are loaded."""
        names = [name for encoder in self.encoders for name in (encoder.name, encoder.tokenizer)]
        return (*dict.fromkeys(names), *self.others)

    @property
    def separates_requests(self) -> bool:
        """Whether prompts of different requests have to be encoded separately."""
        return self.pads_to_longest or self.mixes_dtypes or self.picture is not None

    @property
    def masks(self) -> dict[str, str]:
        """The mask of each tensor whose padding need not be sent, and of its negative counterpart."""
        own = {output.name: output.mask for output in self.outputs if output.mask}
        return own | {NEGATIVE_PREFIX + name: NEGATIVE_PREFIX + mask for name, mask in own.items()}

    @property
    def layouts(self) -> dict[str, Layout]:
        """The position of the prompts in each tensor and in each negative counterpart."""
        own = {output.name: output.layout for output in self.outputs}
        return own | {NEGATIVE_PREFIX + name: layout for name, layout in own.items()}

    def parameter(self, name: str) -> Parameter | None:
        """Return the parameter with this name, or None."""
        return next((parameter for parameter in self.parameters if parameter.name == name), None)

    @property
    def negatives(self) -> tuple[str, ...]:
        """Names of the negative prompts that requests may have; all rows accept one name without a value."""
        own = tuple(parameter.name for parameter in self.parameters if parameter.kind == "negative")
        return own or (() if self.guidance is None else (f"{NEGATIVE_PREFIX}prompt",))
