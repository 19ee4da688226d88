"""The weights in a text: ``(word:1.3)``, ``(word)`` for 1.1, and ``\\(`` for a parenthesis; they may be nested.

What unbalanced parentheses mean follows from counting: a group begins at the first parenthesis that opens while
none is open, and ends where as many were closed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ....errors import RequestError

#: A group without a number.
_EMPHASIS = 1.1

#: Levels of parentheses; people use three.
_MOST_NESTED = 64

#: Stand for escaped parentheses while groups are looked for.
_ESCAPES = (("\\)", "\0\1", ")"), ("\\(", "\0\2", "("))


def weighted_pieces(text: str) -> list[tuple[str, float]]:
    """Return the pieces of a text, in order, with their weights.

    Raises:
        RequestError: for weights that are no finite numbers, and for more than 64 levels of parentheses.
    """
    for escaped, stand_in, _ in _ESCAPES:
        text = text.replace(escaped, stand_in)
    return [(plain(piece), weight) for piece, weight in _weighted(text, 1.0, 0)]


def plain(text: str) -> str:
    """Return a text with escaped parentheses as parentheses."""
    for escaped, stand_in, meant in _ESCAPES:
        text = text.replace(escaped, meant).replace(stand_in, meant)
    return text


def _weighted(text: str, weight: float, level: int) -> Iterator[tuple[str, float]]:
    if level > _MOST_NESTED:
        raise RequestError("a prompt has too many nested parentheses", expected=f"at most {_MOST_NESTED} levels")
    for group in _groups(text):
        if len(group) < 2 or group[0] != "(" or group[-1] != ")":
            yield group, weight
            continue
        inner, colon, number = group[1:-1].rpartition(":")
        given = _number(number) if colon and inner else None
        if given is None:
            yield from _weighted(group[1:-1], weight * _EMPHASIS, level + 1)
        else:
            yield from _weighted(inner, given, level + 1)


def _groups(text: str) -> Iterator[str]:
    """Divide a text into groups in parentheses and what is between them."""
    begin = depth = 0
    for place, character in enumerate(text):
        if character == "(":
            if depth == 0 and place > begin:
                yield text[begin:place]
                begin = place
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                yield text[begin : place + 1]
                begin = place + 1
    if begin < len(text):
        yield text[begin:]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number):
        raise RequestError("a weight in a prompt is no finite number", expected="a number, as in (word:1.3)")
    return number
