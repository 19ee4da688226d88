"""What a technique is: the facts of its row, and the functions that apply, prove and undo it.  No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import RequestError
from .facts import FACTS, Facts, Missing, Stage

if TYPE_CHECKING:
    from .pipeline_context import PipelineContext

__all__ = ["Applied", "Change", "Missing", "Proof", "Stage", "Technique", "Undo", "Watch", "Witness", "row"]

Listener = TypeVar("Listener")


@dataclass(frozen=True, slots=True)
class Proof:
    """What was seen; the evidence is a short sentence: ``4 of 10 forwards of the mid block``."""

    took_effect: bool
    evidence: str


#: Watches one picture being made, from the outside; asked for the proof afterwards.
Witness = AbstractContextManager[Callable[[], Proof]]

#: Makes a new watcher: ``with watch() as proof: <make a picture>``, then ``proof()``.
Watch = Callable[[], Witness]


@dataclass(frozen=True, slots=True)
class Applied:
    """A technique that is in force; ``undo`` puts the context back as it was, or is None where nothing can."""

    witness: Watch
    undo: Callable[[], None] | None = None


class Undo:
    """The way back of a technique, noted step by step while it is put in force; the last step is undone first."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def __call__(self) -> None:
        """Undoes all steps.  After one that raises, another call goes on with that step."""
        while self._steps:
            self._steps[-1]()
            self._steps.pop()

    def by(self, step: Callable[..., object], *given: Any) -> None:
        """Notes a call."""
        self._steps.append(partial(step, *given))

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute, and notes what it was; it is put back unless it was replaced again since."""
        before = getattr(owner, name)
        setattr(owner, name, value)
        self.by(_put_back, owner, name, getattr(owner, name), before)

    def keep(self, module: Any, *names: str) -> None:
        """Notes what a module and all that is in it have of their own under these names, ``forward`` above all.

        A forward that hangs on an object hides the one of its class.  Libraries that are told to stop hang the
        class's own there, which looks the same until the class is changed, as ToMe does: then nothing happens any
        more.
        """
        before = [(part, {name: vars(part).get(name) for name in names}) for part in module.modules()]

        def put_back() -> None:
            for part, own in before:
                for name, value in own.items():
                    if value is None:
                        vars(part).pop(name, None)
                    else:
                        vars(part)[name] = value

        self.by(put_back)

    def listen(self, listeners: list[Listener], listener: Listener) -> None:
        """Appends a listener, and notes that it is to be removed."""
        listeners.append(listener)
        self.by(listeners.remove, listener)


def _put_back(owner: Any, name: str, there: Any, before: Any) -> None:
    if getattr(owner, name) is not there:
        raise RequestError(f"`{name}` of this {type(owner).__name__} has been replaced since", hint=UNDO_LATER)
    setattr(owner, name, before)


#: What to try where a later change is in the way.
UNDO_LATER = "undoing the later change first"

#: Puts a technique in force on a context, notes the way back, and returns what makes its witnesses.  What it raises
#: is raised once its steps until then are undone; one that notes no step has no way back.
Change = Callable[["PipelineContext", Undo], Watch]


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
    name: str, change: Change, why_missing: Callable[[PipelineContext], Missing | None] = lambda _: None
) -> Technique:
    """The technique whose facts the catalogue has under this name.

    ``why_missing`` is asked when the context has what the row requires.
    """
    facts = FACTS[name]

    def apply(context: PipelineContext) -> Applied:
        undo = Undo()
        try:
            witness = change(context, undo)
        except BaseException:
            undo()
            raise
        return Applied(witness, undo if undo else None)

    def look(context: PipelineContext) -> Missing | None:
        from .requirements import unmet  # which brings torch along

        return unmet(facts, context) or why_missing(context)

    kept = {each.name: getattr(facts, each.name) for each in dataclasses.fields(Facts)}
    return Technique(**kept, apply=apply, why_missing=look)
