"""What a technique is: the facts of its row, and the functions that apply, prove and undo it.  No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .facts import FACTS, GUIDE, Exactness, Facts, Missing, Outcome, Stage

if TYPE_CHECKING:
    from .pipeline_context import PipelineContext

__all__ = ["GUIDE", "Applied", "Exactness", "Missing", "Outcome", "Proof", "Stage", "Technique", "Witness", "row"]


@dataclass(frozen=True, slots=True)
class Proof:
    """What was seen.

    Attributes:
        took_effect: Whether the technique did anything.
        evidence: What was counted, as a short sentence: ``4 of 10 forwards of the mid block``.
    """

    took_effect: bool
    evidence: str


#: Watches one picture being made, from the outside; asked for the proof afterwards.
Witness = AbstractContextManager[Callable[[], Proof]]


@dataclass(frozen=True, slots=True)
class Applied:
    """A technique that is in force.

    Attributes:
        witness: Makes a new watcher: ``with applied.witness() as proof: <make a picture>``, then ``proof()``.
        undo: Puts the context back as it was, bit for bit; None where the library has no way back.
    """

    witness: Callable[[], Witness]
    undo: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique(Facts):
    """A technique that can be put in force.

    Attributes:
        apply: Puts it in force.  Whatever it raises, the context is as it was.
        why_missing: Asked first, cheaply: the reason why it cannot run on this context, or None.
    """

    apply: Callable[[PipelineContext], Applied]
    why_missing: Callable[[PipelineContext], Missing | None] = lambda _: None


def row(
    name: str,
    apply: Callable[[PipelineContext], Applied],
    why_missing: Callable[[PipelineContext], Missing | None] = lambda _: None,
) -> Technique:
    """The technique whose facts the catalogue has under this name.

    Where the row says what lives instead, its ``needs`` are looked for once ``why_missing`` has nothing to say.
    """
    facts = FACTS[name]

    def look(context: PipelineContext) -> Missing | None:
        from .requirements import not_installed  # which brings torch along

        return why_missing(context) or not_installed(*facts.needs, instead=facts.instead)

    kept = {each.name: getattr(facts, each.name) for each in dataclasses.fields(Facts)}
    return Technique(**kept, apply=apply, why_missing=look if facts.instead else why_missing)
