"""The table of techniques.  A new one is a row of ``catalogue.json``, whose ``change`` names a function here.

``precision.half`` is the function ``half`` of ``precision.py``, a :data:`.technique.Change` that takes the row's
``settings`` besides.  ``check`` names a function that says why the row cannot run on a context that has what it
requires, and the words that it takes besides.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NoReturn

from ...errors import RequestError
from ..harness.names import look_up
from .facts import FACTS, KNOWN, Facts, Missing
from .technique import Technique, row


def _technique(facts: Facts) -> Technique:
    missing = facts.unavailable
    if missing is not None:
        return row(facts.name, partial(_refuse, facts, missing), lambda _: missing)
    change = partial(_function(facts.change), **facts.settings)
    if not facts.check:
        return row(facts.name, change)
    check, *words = facts.check.split()
    look = _function(check)
    return row(facts.name, change, lambda context: look(context, *words))


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(".")
    function: Callable[..., Any] = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    return function


def _refuse(facts: Facts, missing: Missing, *_: object) -> NoReturn:
    raise RequestError(f"{facts.title} cannot be applied", saw=missing.reason, hint=missing.instead)


#: By name, family by family.
TECHNIQUES: dict[str, Technique] = {name: _technique(facts) for name, facts in FACTS.items()}


def named(names: Iterable[str]) -> tuple[Technique, ...]:
    """The rows of these names, in the order given.

    Raises:
        RequestError: for a name that no row has.
    """
    return tuple(look_up("technique", name, TECHNIQUES, KNOWN) for name in names)
