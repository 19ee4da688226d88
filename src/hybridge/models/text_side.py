"""What is known of a pipeline's text encoders before they are loaded: what goes in, and what comes out.

One :class:`TextSide` for all pipeline classes whose ``encode_prompt`` and ``__call__`` agree about text; the rows
are in :mod:`hybridge.models.text_sides`.  No value here repeats a default of diffusers: an option that is not given
takes the default of the installed pipeline's ``__call__``, which is not always that of its ``encode_prompt``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

#: Prefix of everything that belongs to the negative prompt: of arguments and of tensors.
NEGATIVE_PREFIX = "negative_"

ParameterKind = Literal[
    "prompt", "negative", "length", "clip_skip", "flag", "layers", "text", "texts", "template", "whole"
]

#: How the prompts are counted in a tensor: along axis 0, as members of a list, along axis 1, or as running sums.
Layout = Literal["batch", "list", "batch-axis-1", "cu_seqlens"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument that is about text.

    Attributes:
        name: As ``__call__`` has it.
        kind: ``prompt`` and ``negative`` are a string, a list of strings, or null; ``length`` is a number of
            tokens; ``clip_skip`` a number of layers, or null; ``flag`` a bool; ``layers`` a list of layers by their
            number; ``text`` a string or null; ``texts`` a list of strings or null; ``template`` an object with
            ``template``, which has one ``{}``, and ``crop_start``; ``whole`` a whole number or null.
        most: The largest value.
        above: Of ``clip_skip``, how many of the encoder's hidden states cannot be reached by it.
    """

    name: str
    kind: ParameterKind
    most: int | None = None
    above: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor that goes back into ``__call__``, under the same name; its negative twin is named after it.

    Attributes:
        name: The argument of ``__call__``.
        layout: Where the prompts are counted.
        mask: The output whose zeros say which positions of this one are padding.  Named only where the picture is
            the same with zeros there, so that they need not be sent.
    """

    name: str
    layout: Layout = "batch"
    mask: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of ``encode_prompt``.

    Attributes:
        returns: What it returns, in order: a name under which ``__call__`` takes it back, or None for what is not
            accepted there.
        negative: ``argument`` where ``encode_prompt`` takes the negative prompt itself, ``call`` where it is called
            once more with the negative prompt in place of the prompt.
        arguments: Further arguments, the same for every request.
    """

    returns: tuple[str | None, ...]
    negative: Literal["argument", "call"] | None = "argument"
    arguments: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Guidance:
    """When ``__call__`` uses a negative prompt.

    Attributes:
        scales: Arguments of ``__call__``; guidance is on when one of them is above ``above``.  Empty where a guider
            decides.
        above: What they are compared with.
        only_if_given: Whether guidance needs a negative prompt as well: without one it is off.
        guider: The component that decides instead: guidance is on when it is enabled and has more than one
            condition.
        off_if: The entry of the pipeline's config that turns guidance off.
        zeros_if: Where the negative embeddings of a prompt that was not given are zeros, which a pipeline makes
            without encoders: always, or if this entry of its config says so.
        text: The negative prompt that ``__call__`` takes when it has none and must call ``encode_prompt`` for it.
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
    """One model of a text side, and the tokenizer before it.

    Attributes:
        name: The component.
        tokenizer: The component that makes its tokens.
        tokens: How many it reads of a prompt at most: a number, or the parameter that says so.
        extra_tokens: How many a template adds to that.
        fills: Whether it reads as many for a short prompt.
        without: Modules that no embedding depends on, by their path; they are not loaded.  A path that a class does
            not have is no error: older and newer releases have different ones.
        layers: The path in its config of the number of layers, and the parameter that lists the layers that are
            read; those above the highest of them are not loaded.
        optional: Whether pipelines may be without it.
    """

    name: str
    tokenizer: str
    tokens: int | str
    extra_tokens: int = 0
    fills: bool = True
    without: tuple[str, ...] = ()
    layers: tuple[str, str] | None = None
    optional: bool = False


#: How a picture is made ready before ``encode_prompt`` sees it: the names of the engine's functions for it.
Picture = Literal["qwen edit", "qwen edit plus", "hunyuan video"]


@dataclass(frozen=True, slots=True)
class TextSide:
    """The text encoders of some pipeline classes.

    Attributes:
        name: For people, and for the tests.
        classes: The pipeline classes of diffusers.
        parameters: What requests may hold.
        calls: How ``encode_prompt`` is called.
        outputs: What comes back.
        guidance: When the negative prompt matters; None where a pipeline takes no negative embeddings.
        encoders: The models.
        others: Further components that the text side needs, such as a processor of pictures.
        stand_ins: Components that the pipeline's constructor or ``encode_prompt`` reads facts from.  Their
            ``config.json`` is read, their weights are not.
        plain_tokenizers: Components that are saved as processors of pictures, of which text needs the tokenizer
            alone.
        count: The argument of ``encode_prompt`` for the number of prompts, where it does not count them itself.
        takes_dtype: Whether ``__call__`` tells ``encode_prompt`` the denoiser's dtype.
        call_with: Arguments that ``__call__`` needs when it is given embeddings, because its defaults would use the
            encoder.
        counts_absent_prompts: Whether ``encode_prompt`` takes the length of the list of prompts although it has
            embeddings, so that a pipeline without encoders must have it wrapped.
        separates_empty: Whether an empty prompt in a batch changes the embeddings of the others, so that it is
            encoded on its own.
        pads_to_longest: Whether the length of the embeddings depends on the longest prompt of a batch.
        picture: How a picture goes into the embeddings; None where they depend on text alone.
        libraries: What has to be installed beside transformers.
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
    picture: Picture | None = None
    libraries: tuple[str, ...] = ()

    @property
    def components(self) -> tuple[str, ...]:
        """Every component that is loaded."""
        names = [name for encoder in self.encoders for name in (encoder.name, encoder.tokenizer)]
        return (*dict.fromkeys(names), *self.others)

    @property
    def masks(self) -> dict[str, str]:
        """For tensors whose padding need not be sent, and their negative twins, the mask that says where it is."""
        own = {output.name: output.mask for output in self.outputs if output.mask}
        return own | {NEGATIVE_PREFIX + name: NEGATIVE_PREFIX + mask for name, mask in own.items()}

    @property
    def layouts(self) -> dict[str, Layout]:
        """Where the prompts are counted in each tensor, and in each negative twin."""
        own = {output.name: output.layout for output in self.outputs}
        return own | {NEGATIVE_PREFIX + name: layout for name, layout in own.items()}

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of this name."""
        return next((parameter for parameter in self.parameters if parameter.name == name), None)

    @property
    def negatives(self) -> tuple[str, ...]:
        """Names of the negative prompts that requests may hold; without a value, one name is known to all."""
        own = tuple(parameter.name for parameter in self.parameters if parameter.kind == "negative")
        return own or (() if self.guidance is None else (f"{NEGATIVE_PREFIX}prompt",))
