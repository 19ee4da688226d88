"""Rows and functions find each other: a row names its function, and no function is left that no row names."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hybridge.lab.techniques.facts import FACTS

CHANGES = {name: facts for name, facts in FACTS.items() if facts.unavailable is None}


def functions(module: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Those of a family's file that put something in force on a context, by the name that rows have for them."""
    family = importlib.import_module(f"hybridge.lab.techniques.{module}")
    for name, function in inspect.getmembers(family, inspect.isfunction):
        annotations = [parameter.annotation for parameter in inspect.signature(function).parameters.values()]
        if annotations[:2] == ["PipelineContext", "Undo"] and not name.startswith("_"):
            yield f"{module}.{name}", function


def test_every_function_belongs_to_a_row() -> None:
    named = {facts.change for facts in CHANGES.values()}
    modules = {change.partition(".")[0] for change in named}
    assert {name for module in modules for name, _ in functions(module)} == named


@pytest.mark.parametrize("name", CHANGES)
def test_settings_are_those_of_the_function(name: str) -> None:
    facts = CHANGES[name]
    function = dict(functions(facts.change.partition(".")[0]))[facts.change]
    inspect.signature(function).bind(None, None, **facts.settings)


def test_what_cannot_be_put_in_force_names_no_function() -> None:
    assert not [facts.name for facts in FACTS.values() if facts.unavailable and (facts.change or facts.check)]
