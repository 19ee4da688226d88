"""What became of a configuration, as the record says it.  Plain data; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from ..techniques.facts import Outcome, TechniqueResult

#: That of a stack is its worst technique's.
_WORST_FIRST: tuple[Outcome, ...] = ("failed", "dead", "unavailable", "no effect", "worked")


def kept(result: TechniqueResult) -> dict[str, Any]:
    """What became of a technique, as the record has it."""
    if result.outcome == "no effect":
        result = replace(result, reason="its call succeeded and nothing changed")
    return asdict(result)


def together(techniques: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Outcome, reason and techniques of a configuration, from those of which something is known."""
    worst = min(techniques, key=lambda one: _WORST_FIRST.index(one["outcome"]), default=None)
    outcome, reason = (worst["outcome"], worst["reason"]) if worst else ("worked", None)
    if reason and len(techniques) > 1 and worst:
        reason = f"{worst['name']}: {reason}"
    return {"outcome": outcome, "reason": reason, "techniques": list(techniques)}


def failed(names: Sequence[str], reason: str) -> dict[str, Any]:
    """A configuration that made no picture.  Whose fault it is nobody can tell where there are several."""
    techniques = [kept(TechniqueResult(name, "failed", reason=reason)) for name in names if len(names) == 1]
    return {"outcome": "failed", "reason": reason, "techniques": techniques}
