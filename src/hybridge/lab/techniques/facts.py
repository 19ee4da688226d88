"""The facts of ``catalogue.json``: what is known of a technique without running it.  No torch.

A technique is one row there: titles and claims in both languages, what it needs, what it changes in the estimate,
which kinds of technique it belongs to (by which :mod:`.compatibility` excludes it), and, where nothing can put it
in force, why.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..harness.typed import parse

#: How far the picture may be from the one without it: the same bits; the same up to rounding; another picture.
Exactness = Literal["bitwise", "rounding", "approximate"]

#: When it is applied, first to last; within a stage any order will do.  Undone in reverse.
Stage = Literal["dtype", "vae", "layout", "freeu", "fuse", "quantise", "cache", "compile", "offload", "call"]

#: Where the claims of most rows are made: one person's table for SDXL on an RTX 3090, 2024.
GUIDE = "https://www.felixsanz.dev/articles/ultimate-guide-to-optimizing-stable-diffusion-xl"


#: What became of it.  *no effect*: its call succeeded and its proof says that nothing changed.  *unavailable* and
#: *dead*: see :class:`Missing`.
Outcome = Literal["worked", "no effect", "unavailable", "dead", "failed"]


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a technique cannot run.

    Attributes:
        outcome: *unavailable*: it lives, not here.  *dead*: nothing that is maintained can load it any more.
        reason: What was looked for and not found.
        instead: What lives in its place, or None where nothing is needed.
    """

    outcome: Literal["unavailable", "dead"]
    reason: str
    instead: str | None = None


@dataclass(frozen=True, slots=True)
class TechniqueResult:
    """What became of one technique.

    Attributes:
        outcome: None for one that is in force and was not proven.
        instead: What lives in its place, or None.
    """

    name: str
    outcome: Outcome | None
    evidence: str | None = None
    reason: str | None = None
    instead: str | None = None

    @property
    def technique(self) -> str:
        """Its name."""
        return self.name

    @property
    def told(self) -> str:
        """Evidence or reason, for a table: a line, cut where it is long."""
        if self.reason is not None:
            reason = " ".join(self.reason.split())
            reason = reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]} …"
            return f"{reason}; instead: {self.instead}" if self.instead else reason
        return self.evidence or "not proven"


#: Characters of a reason, in a table: errors of other libraries quote whole modules.
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a context must have for a technique to run on it.

    Attributes:
        that: A name of :data:`.requirements.CONDITIONS`, and words for it.
        reason: What to say of a context without it; ``{pipe}``, ``{device}`` and the like are filled in.
        instead: What lives in its place, or None.
    """

    that: str
    reason: str
    instead: str | None = None
    outcome: Literal["unavailable", "dead"] = "unavailable"


@dataclass(frozen=True, slots=True)
class Facts:
    """A row.

    Attributes:
        name: On the command line and in records: ``tiny-vae``.
        title: In tables: ``Tiny VAE``.
        claim: What its source promises, in a sentence, numbers included.
        group: Of techniques that do the same thing, of which a stack has one: ``cache``, ``offload``.
        kinds: Names by which the tables of :mod:`.compatibility` mean it and others.
        requires: What a context must have, the first asked first.
        needs: Distributions that must be installed, as ``pip install`` takes them.
        instead: What lives in its place where they are not; None where its own check says more.
        change: The function that puts it in force; see :mod:`.catalogue`.
        check: A function that says why it cannot, and words for it; empty where ``requires`` says all.
        effect: Fields of :class:`..estimator.effects.Effect`.
        unavailable: Why nothing can put it in force, for what is known and not implemented.
    """

    name: str
    title: str
    claim: str
    source: str
    exactness: Exactness
    stage: Stage
    group: str | None = None
    kinds: tuple[str, ...] = ()
    requires: tuple[Requirement, ...] = ()
    needs: tuple[str, ...] = ()
    instead: str | None = None
    title_zh: str = ""
    claim_zh: str = ""
    change: str = ""
    settings: dict[str, Any] = field(default_factory=dict, hash=False)
    check: str = ""
    effect: dict[str, Any] = field(default_factory=dict, hash=False)
    unavailable: Missing | None = None


def last_guided_step(share: float, steps: int) -> int:
    """Index of the step after which guidance ends.

    The rule of the guide and of diffusers' own callback: guidance is switched off when step ``int(steps × share)``
    is over, counted from 0, so one step more than the share itself is under guidance: 6 of 10, 26 of 50.

    Args:
        share: Of the steps, below 1.
        steps: Of this call.
    """
    return int(steps * share)


def _facts(row: dict[str, Any]) -> Facts:
    texts = {
        key if code == "en" else f"{key}_zh": row[key][code] for key in ("title", "claim") for code in row[key]
    }
    source = GUIDE if row["source"] == "guide" else row["source"]
    facts: Facts = parse(Facts, {**row, **texts, "source": source}, f"the row of {row['name']}")
    return facts


#: The whole file; :mod:`.compatibility` reads its other tables.
CATALOGUE: dict[str, Any] = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))

#: By name, family by family.
FACTS: dict[str, Facts] = {row["name"]: _facts(row) for row in CATALOGUE["techniques"]}

#: What to expect of a name that is none.
KNOWN = "a name that `hybridge lab list` shows"
