"""Several techniques on one rig: checked before anything is touched, applied in order, undone in reverse."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from ...errors import RequestError
from .rig import Rig
from .technique import Applied, Missing, Stage, Technique

_STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one technique of a stack.

    Attributes:
        technique: The row.
        applied: What is in force, or None.
        missing: Why it could not run, or None.
        failure: What its call raised, as text, or None.
    """

    technique: Technique
    applied: Applied | None = None
    missing: Missing | None = None
    failure: str | None = None


def check(techniques: Sequence[Technique]) -> None:
    """Raises :class:`RequestError` for a stack that cannot be: a clash, or an order that would lose something."""
    for earlier, later in itertools.pairwise(techniques):
        if _STAGES.index(earlier.stage) > _STAGES.index(later.stage):
            raise RequestError(
                f"{later.title} comes before {earlier.title}",
                saw=" + ".join(technique.name for technique in techniques),
                expected=" + ".join(technique.name for technique in in_order(techniques)),
            )


def in_order(techniques: Sequence[Technique]) -> tuple[Technique, ...]:
    """The same techniques, by stage."""
    return tuple(sorted(techniques, key=lambda technique: _STAGES.index(technique.stage)))


def apply(rig: Rig, techniques: Sequence[Technique]) -> list[Step]:
    """Puts a checked stack in force, one after the other; a technique that cannot run leaves the others.

    Raises:
        RequestError: see :func:`check`.
    """
    check(techniques)
    return [_step(rig, technique) for technique in techniques]


def undo(steps: Sequence[Step]) -> list[str]:
    """Undoes a stack in reverse, as far as it has ways back; names what stays."""
    stays = []
    for step in reversed(steps):
        if step.applied is None:
            continue
        if step.applied.undo is None:
            stays.append(step.technique.name)
        else:
            step.applied.undo()
    return stays


def _step(rig: Rig, technique: Technique) -> Step:
    missing = technique.why_missing(rig)
    if missing is not None:
        return Step(technique, missing=missing)
    try:
        return Step(technique, applied=technique.apply(rig))
    except Exception as why:  # other people's code: what it cannot do is an outcome, not the end of the run
        return Step(technique, failure=f"{type(why).__name__}: {why}")
