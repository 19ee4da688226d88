"""What a request for embeddings holds, read from JSON's types; arithmetic and comparisons only."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import RequestError, TooLarge, UnknownParameter
from ...models import TextSide
from ...models.text_side import NEGATIVE_PREFIX, Parameter

_MOST_SHOWN = 60

#: Items of a list that is no list of prompts.
_MOST_ITEMS = 64


@dataclass(frozen=True, slots=True)
class TextLimits:
    """What one request may hold.

    Attributes:
        prompts: Prompts at most.
        characters: Of one text at most; tokenizers read them all before they cut.
    """

    prompts: int = 32
    characters: int = 16_384


@dataclass(frozen=True, slots=True)
class Facts:
    """What has to be known of a loaded text side to tell whether it can answer.

    Attributes:
        states: Hidden states of the encoder that has the fewest, counting the token embeddings.
        layers: The highest index of ``layers`` that can be read.
    """

    states: int
    layers: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, in order.

    Attributes:
        prompts: By the name of the argument, one text for each prompt, or None where it was not given.
        negatives: The same for negative prompts; None where guidance is off.
        options: Those that were given.
    """

    prompts: Mapping[str, list[str] | None]
    negatives: Mapping[str, list[str] | None] | None
    options: Mapping[str, Any]

    @property
    def count(self) -> int:
        """Prompts in it."""
        return len(self.prompts["prompt"] or ())

    def some(self, indices: list[int]) -> Asked:
        """Some of the prompts, with the same options."""

        def chosen(texts: Mapping[str, list[str] | None]) -> dict[str, list[str] | None]:
            return {name: None if all_ is None else [all_[i] for i in indices] for name, all_ in texts.items()}

        return Asked(chosen(self.prompts), None if self.negatives is None else chosen(self.negatives), self.options)


def together(several: Sequence[Asked]) -> Asked:
    """Requests of one kind as one: their prompts one after the other.

    Raises:
        RequestError: when they are of several kinds.
    """
    first = several[0]

    def joined(all_: Sequence[Mapping[str, list[str] | None]]) -> dict[str, list[str] | None]:
        lists = {name: [one[name] for one in all_] for name in all_[0]}
        return {
            name: None if None in own else [text for texts in own for text in texts or ()]
            for name, own in lists.items()
        }

    if len({(_kind(one.prompts), _kind(one.negatives), repr(one.options)) for one in several}) > 1:
        raise RequestError("requests of several kinds cannot be encoded together", expected="the same options")
    negatives = [one.negatives for one in several if one.negatives is not None]
    return Asked(joined([one.prompts for one in several]), joined(negatives) if negatives else None, first.options)


def _kind(prompts: Mapping[str, list[str] | None] | None) -> object:
    """Which prompts there are."""
    return None if prompts is None else tuple((name, texts is None) for name, texts in prompts.items())


def read_inputs(inputs: Mapping[str, object], side: TextSide, facts: Facts, limits: TextLimits) -> Asked:
    """The request that a mapping of JSON's types is.

    One text stands for as many as there are prompts.  A negative prompt that is absent means that no negative
    embeddings are wanted; one that is None means what the pipeline does without a negative prompt.

    Raises:
        UnknownParameter: for a name that these pipelines do not have; names the nearest.
        TooLarge: for more prompts or longer texts than allowed.
        RequestError: for a value that cannot be.
    """
    known = [parameter.name for parameter in side.parameters]
    known += [name for name in side.negatives if name not in known]
    for name in inputs:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UnknownParameter(
                f"{side.name} has no `{_shown(name)}`",
                expected="some of " + ", ".join(known),
                hint=f"`{near[0]}`" if near else None,
            )
    first = inputs.get("prompt")
    if first is None:
        raise RequestError("there is no prompt", expected='`prompt`, a text or a list of texts; "" is one')
    count = len(first) if isinstance(first, list) else 1
    if count > limits.prompts:
        raise TooLarge("too many prompts", saw=count, expected=f"at most {limits.prompts}", hint="several requests")
    names = [parameter.name for parameter in side.parameters if parameter.kind == "prompt"]
    prompts = {name: _texts(name, inputs.get(name), count, limits) for name in names}
    negatives: dict[str, list[str] | None] | None = None
    negative = f"{NEGATIVE_PREFIX}prompt"
    read = {name: _texts(name, inputs.get(name), count, limits) for name in side.negatives}
    if negative in inputs and negative in read:
        negatives = read
        if side.parameter(negative) is None and inputs[negative] is not None:
            raise RequestError(f"{side.name} takes no negative prompt of one's own", expected=f"`{negative}`: null")
    options = {
        parameter.name: _CHECKS[parameter.kind](parameter, inputs[parameter.name], facts, limits)
        for parameter in side.parameters
        if parameter.kind in _CHECKS and parameter.name in inputs
    }
    return Asked(prompts, negatives, options)


def _texts(name: str, value: object, count: int, limits: TextLimits) -> list[str] | None:
    """One text for each prompt.  A second prompt that is "" means the first, as it does in the pipelines."""
    if value is None or (value == "" and name not in ("prompt", f"{NEGATIVE_PREFIX}prompt")):
        return None
    if isinstance(value, str):
        return [_text(name, value, limits)] * count
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RequestError(f"`{name}` is no text", saw=_shown(value), expected="a text, a list of texts, or null")
    if not value:
        raise RequestError(f"`{name}` is an empty list", expected="at least one text")
    if len(value) != count:
        raise RequestError(
            f"`{name}` has another number of texts than `prompt`", saw=len(value), expected=f"{count}, or one text"
        )
    return [_text(name, item, limits) for item in value]


def _text(name: str, text: str, limits: TextLimits) -> str:
    if len(text) > limits.characters:
        raise TooLarge(
            f"`{name}` is too long", saw=f"{len(text)} characters", expected=f"at most {limits.characters}"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"`{name}` holds half a character", saw=f"the lone surrogate {text[error.start]!r}"
        ) from None
    return text


Check = Callable[[Parameter, Any, Facts, TextLimits], Any]


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RequestError(
            f"`{name}` cannot be", saw=_shown(value), expected=f"a whole number from {least} to {most}"
        )
    return value


def _length(parameter: Parameter, value: Any, facts: Facts, limits: TextLimits) -> int:
    return _whole(parameter.name, value, 1, parameter.most or 1)


def _clip_skip(parameter: Parameter, value: Any, facts: Facts, limits: TextLimits) -> int | None:
    return None if value is None else _whole(parameter.name, value, 0, facts.states - 1 - parameter.above)


def _flag(parameter: Parameter, value: Any, facts: Facts, limits: TextLimits) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"`{parameter.name}` cannot be", saw=_shown(value), expected="true or false")
    return value


def _layers(parameter: Parameter, value: Any, facts: Facts, limits: TextLimits) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= _MOST_ITEMS:
        raise RequestError(
            f"`{parameter.name}` cannot be", saw=_shown(value), expected=f"a list of 1 to {_MOST_ITEMS} layers"
        )
    return tuple(_whole(parameter.name, layer, 0, facts.layers) for layer in value)


def _optional_text(parameter: Parameter, value: Any, facts: Facts, limits: TextLimits) -> str | None:
    if value is not None and not isinstance(value, str):
        raise RequestError(f"`{parameter.name}` is no text", saw=_shown(value), expected="a text, or null")
    return None if value is None else _text(parameter.name, value, limits)


def _optional_texts(parameter: Parameter, value: Any, facts: Facts, limits: TextLimits) -> list[str] | None:
    if value is None:
        return None
    is_list = isinstance(value, list) and len(value) <= _MOST_ITEMS
    if not is_list or not all(isinstance(item, str) for item in value):
        raise RequestError(
            f"`{parameter.name}` cannot be", saw=_shown(value), expected=f"at most {_MOST_ITEMS} texts, or null"
        )
    _text(parameter.name, "\n".join(value), limits)
    return list(value)


def _template(parameter: Parameter, value: Any, facts: Facts, limits: TextLimits) -> dict[str, Any]:
    """A text with one ``{}``: other braces would let whoever sends it read attributes, or fill the memory."""
    text = value.get("template") if isinstance(value, dict) else None
    numbers = {name: number for name, number in value.items() if name != "template"} if text else {}
    is_right = isinstance(text, str) and text.count("{}") == 1 and not set("{}") & set(text.replace("{}", ""))
    if not is_right or not isinstance(text, str):
        raise RequestError(
            f"`{parameter.name}` cannot be",
            saw=_shown(value),
            expected='an object with `template`, a text with one "{}" and no other brace, and `crop_start`',
        )
    checked = {name: _whole(f"{parameter.name}.{name}", number, 0, 4096) for name, number in numbers.items()}
    return {"template": _text(parameter.name, text, limits), **checked}


def _optional_whole(parameter: Parameter, value: Any, facts: Facts, limits: TextLimits) -> int | None:
    return None if value is None else _whole(parameter.name, value, 1, parameter.most or 1)


_CHECKS: dict[str, Check] = {
    "length": _length,
    "clip_skip": _clip_skip,
    "flag": _flag,
    "layers": _layers,
    "text": _optional_text,
    "texts": _optional_texts,
    "template": _template,
    "whole": _optional_whole,
}


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
