"""What a row of the catalogue is.  Data and one function each; no torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .pipeline_context import PipelineContext

#: How far the picture may be from the one without it: the same bits; the same up to rounding; another picture.
Exactness = Literal["bitwise", "rounding", "approximate"]

#: What became of it.  *no effect*: its call succeeded and its proof says that nothing changed.  *unavailable*: it
#: lives, not here.  *dead*: nothing that is maintained can load it any more.
Outcome = Literal["worked", "no effect", "unavailable", "dead", "failed"]

#: When it is applied, first to last; within a stage any order will do.  Undone in reverse.
Stage = Literal["dtype", "vae", "layout", "freeu", "fuse", "quantise", "cache", "compile", "offload", "call"]


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


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a technique cannot run.

    Attributes:
        outcome: ``unavailable`` or ``dead``.
        reason: What was looked for and not found.
        instead: What lives in its place, or None where nothing is needed.
    """

    outcome: Literal["unavailable", "dead"]
    reason: str
    instead: str | None = None


@dataclass(frozen=True, slots=True)
class Technique:
    """A row.

    Attributes:
        name: On the command line and in records: ``tiny-vae``.
        title: In tables: ``Tiny VAE``.
        claim: What its source promises, in a sentence, numbers included.
        source: Where the claim is made: an address.
        exactness: See :data:`Exactness`.
        stage: When it is applied.
        apply: Puts it in force.  Whatever it raises, the context is as it was.
        why_missing: Asked first, cheaply: the reason why it cannot run on this context, or None.
        group: Of techniques that do the same thing, of which a stack has one: ``cache``, ``offload``.
        needs: Distributions that must be installed, as ``pip install`` takes them.
    """

    name: str
    title: str
    claim: str
    source: str
    exactness: Exactness
    stage: Stage
    apply: Callable[[PipelineContext], Applied]
    why_missing: Callable[[PipelineContext], Missing | None] = lambda _: None
    group: str | None = None
    needs: tuple[str, ...] = ()


#: Where the claims of most rows are made: one person's table for SDXL on an RTX 3090, 2024.
GUIDE = "https://www.felixsanz.dev/articles/ultimate-guide-to-optimizing-stable-diffusion-xl"
