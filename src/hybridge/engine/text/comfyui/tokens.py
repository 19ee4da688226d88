"""Texts as chunks of tokens with weights, divided and padded as ComfyUI does it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ....errors import RequestError, TooLarge
from ....models.comfyui_text import Tower
from .prompt_weights import weighted_pieces

#: A token and its weight.
Weighted = tuple[int, float]

#: A piece of fewer tokens is moved to the next chunk as a whole, if it does not fit.
_KEPT_WHOLE = 8

#: A textual inversion, which is a file of the machine with ComfyUI.
_INVERSION = re.compile(r"(?:^|\s)embedding:\S")

#: Tokens of a text, as many as its characters may be at most.
_MOST_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Special:
    """Tokens that are no part of a text.

    Attributes:
        start: Begins a chunk; None if nothing does.
        end: Ends it.
        pad: Fills it up.
    """

    start: int | None
    end: int
    pad: int

    @classmethod
    def of(cls, tokenizer: Any, tower: Tower) -> Special:
        """Return those of a tokenizer, which are what it makes of an empty text."""
        empty = tokenizer("")["input_ids"]
        start = empty[0] if tower.has_start else None
        end = empty[1] if tower.has_start else empty[0]
        return cls(start, end, end if tower.pads_with_end else 0)

    def empty(self, length: int) -> list[int]:
        """Return the tokens of an empty text of a length."""
        begun = [self.end] if self.start is None else [self.start, self.end]
        return begun + [self.pad] * (length - len(begun))


def chunks_of(text: str, tokenizer: Any, special: Special, tower: Tower) -> list[list[Weighted]]:
    """Return the chunks of a text, of the same length if there are several.

    Raises:
        RequestError: for a textual inversion, and for weights that cannot be.
        TooLarge: for too many tokens.
    """
    if _INVERSION.search(text):
        raise RequestError(
            "a textual inversion is a file of the machine with ComfyUI",
            saw="`embedding:` in the prompt",
            expected="a prompt without it, or a local CLIP",
        )
    return list(_chunked(_groups_of(text, tokenizer, tower), special, tower))


def _groups_of(text: str, tokenizer: Any, tower: Tower) -> list[list[Weighted]]:
    groups = []
    for piece, weight in weighted_pieces(text):
        ids = tokenizer(piece, verbose=False)["input_ids"] if piece else []
        groups.append([(token, weight) for token in ids[1 if tower.has_start else 0 : -1]])
    if sum(map(len, groups)) > _MOST_TOKENS:
        raise TooLarge("a prompt has too many tokens", expected=f"at most {_MOST_TOKENS}")
    return groups


def _chunked(groups: list[list[Weighted]], special: Special, tower: Tower) -> Iterator[list[Weighted]]:
    begin: list[Weighted] = [] if special.start is None else [(special.start, 1.0)]
    end, pad = (special.end, 1.0), (special.pad, 1.0)
    chunk = list(begin)
    for whole in groups:
        group = whole
        while group:
            room = len(group) if tower.chunk is None else tower.chunk - 1 - len(chunk)
            if len(group) <= room:
                chunk += group
                break
            if len(whole) >= _KEPT_WHOLE:
                chunk += [*group[:room], end]
                group = group[room:]
            else:
                chunk += [end, *[pad] * room]
            yield chunk
            chunk = list(begin)
    chunk.append(end)
    yield chunk + [pad] * (max(tower.least, tower.chunk or 0) - len(chunk))
