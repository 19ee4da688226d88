"""Several techniques on one context: checked before anything is touched, applied in order, undone in reverse."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from ...errors import RequestError
from .compatibility import between, must_precede, one_of
from .facts import TechniqueResult
from .pipeline_context import PipelineContext
from .technique import Applied, Missing, Proof, Stage, Technique

_STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one technique of a stack; ``failure`` is what its call raised, as text."""

    technique: Technique
    applied: Applied | None = None
    missing: Missing | None = None
    failure: str | None = None

    def result(self, proof: Proof | None = None) -> TechniqueResult:
        """What became of it, with what its witness said, if it was asked."""
        name = self.technique.name
        if self.missing is not None:
            return TechniqueResult(name, self.missing.outcome, None, self.missing.reason, self.missing.instead)
        if self.applied is None:
            return TechniqueResult(name, "failed", reason=self.failure or "it did nothing and did not say why")
        if proof is None:
            return TechniqueResult(name, None)
        return TechniqueResult(name, "worked" if proof.took_effect else "no effect", proof.evidence)


def check(techniques: Sequence[Technique]) -> None:
    """Raises :class:`RequestError` for a stack that cannot be: a clash, or an order that would lose something."""
    for first, second in itertools.combinations(techniques, 2):
        _check_pair(first, second, _text(techniques))
    for earlier, later in itertools.combinations(techniques, 2):
        if _precedes(later, earlier):
            why = must_precede(later.name, earlier.name)
            raise RequestError(
                f"{later.title} comes before {earlier.title}" + (f"; {why.reason}" if why else ""),
                saw=_text(techniques),
                expected=_text(in_order(techniques)),
            )


def in_order(techniques: Sequence[Technique]) -> tuple[Technique, ...]:
    """The techniques by stage, and within a stage as their clashes want it; else as they came."""
    left = sorted(techniques, key=lambda technique: _STAGES.index(technique.stage))
    ordered: list[Technique] = []
    while left:
        free = next(t for t in left if not any(_precedes(other, t) for other in left))
        left.remove(free)
        ordered.append(free)
    return tuple(ordered)


def apply(context: PipelineContext, techniques: Sequence[Technique]) -> list[Step]:
    """Puts a checked stack in force, one after the other; a technique that cannot run leaves the others.

    Raises:
        RequestError: see :func:`check`.
    """
    check(techniques)
    steps: list[Step] = []
    try:
        for technique in techniques:
            steps.append(_step(context, technique))  # noqa: PERF401 - what was done so far must be known
    except BaseException:  # whoever is interrupted half-way has no handle to undo it with
        undo(steps)
        raise
    return steps


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


def _step(context: PipelineContext, technique: Technique) -> Step:
    missing = technique.why_missing(context)
    if missing is not None:
        return Step(technique, missing=missing)
    try:
        return Step(technique, applied=technique.apply(context))
    except Exception as why:  # other people's code: what it cannot do is an outcome, not the end of the run
        return Step(technique, failure=f"{type(why).__name__}: {why}")


def _check_pair(first: Technique, second: Technique, saw: str) -> None:
    if first.name == second.name:
        raise RequestError(f"{first.title} is there twice", saw=saw, expected="each technique once")
    place, clash = one_of(first.name, second.name), between(first.name, second.name)
    both = f"{first.title} and {second.title}"
    if place is not None:
        raise RequestError(
            f"{both} would each be {place.place}; {place.reason}", saw=saw, expected="one of the two"
        )
    if clash is not None and clash.rule == "never together":
        raise RequestError(
            f"{both} do not go together; {clash.reason}", saw=saw, expected="one of the two", hint=clash.remedy
        )
    if first.group is not None and first.group == second.group:
        raise RequestError(f"{both} do the same thing ({first.group})", saw=saw, expected="one of the two")


def _precedes(first: Technique, second: Technique) -> bool:
    early, late = _STAGES.index(first.stage), _STAGES.index(second.stage)
    return early < late or (early == late and must_precede(first.name, second.name) is not None)


def _text(techniques: Sequence[Technique]) -> str:
    return " + ".join(technique.name for technique in techniques)
