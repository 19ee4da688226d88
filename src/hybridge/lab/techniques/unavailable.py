"""Techniques that are known and cannot be put in force here: each says why, and what lives in its place."""

from __future__ import annotations

from typing import NoReturn

from ...errors import RequestError
from .facts import FACTS, Facts
from .technique import Technique, row


def _unavailable(facts: Facts) -> Technique:
    missing = facts.unavailable

    def refuse(_: object, __: object) -> NoReturn:
        assert missing is not None  # noqa: S101 - the rows below have one
        raise RequestError(f"{facts.title} cannot be applied", saw=missing.reason, hint=missing.instead)

    return row(facts.name, refuse, lambda _: missing)


ROWS: tuple[Technique, ...] = tuple(_unavailable(facts) for facts in FACTS.values() if facts.unavailable)
