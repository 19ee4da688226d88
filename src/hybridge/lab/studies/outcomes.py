"""What became of a configuration and of its techniques, as the record says it.  Plain data; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..techniques.facts import Missing, Outcome
from ..techniques.technique import Proof
from .record import TechniqueResult

#: That of a stack is its worst technique's.
_WORST_FIRST: tuple[Outcome, ...] = ("failed", "dead", "unavailable", "no effect", "worked")


def missing(name: str, why: Missing) -> dict[str, Any]:
    """A technique that cannot run here."""
    return _technique(name, why.outcome, reason=why.reason, instead=why.instead)


def broken(name: str, reason: str) -> dict[str, Any]:
    """A technique whose call raised."""
    return _technique(name, "failed", reason=reason)


def proven(name: str, proof: Proof) -> dict[str, Any]:
    """A technique that was in force while a picture was made."""
    if proof.took_effect:
        return _technique(name, "worked", evidence=proof.evidence)
    return _technique(name, "no effect", evidence=proof.evidence, reason="its call succeeded and nothing changed")


def together(techniques: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Outcome, reason and techniques of a configuration, from those of which something is known."""
    worst = min(techniques, key=lambda one: _WORST_FIRST.index(one["outcome"]), default=None)
    outcome, reason = (worst["outcome"], worst["reason"]) if worst else ("worked", None)
    if reason and len(techniques) > 1 and worst:
        reason = f"{worst['name']}: {reason}"
    return {"outcome": outcome, "reason": reason, "techniques": list(techniques)}


def failed(names: Sequence[str], reason: str) -> dict[str, Any]:
    """A configuration that made no picture.  Whose fault it is nobody can tell where there are several."""
    techniques = [broken(name, reason) for name in names] if len(names) == 1 else []
    return {"outcome": "failed", "reason": reason, "techniques": techniques}


def _technique(name: str, outcome: Outcome, **said: str | None) -> dict[str, Any]:
    return asdict(TechniqueResult(name, outcome, **said))
