"""Every code that is raised or found anywhere is in the table, and every code of the table is used."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import hybridge
from hybridge.models.doctor.causes import CAUSES, About, Severity

SOURCE = Path(hybridge.__file__).parent


def codes() -> set[str]:
    """Texts that are a cause: the argument ``cause=``, and the first one of Finding(…), add(…) and note(…)."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        found |= set(CAUSES) & set(texts)
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
            given = [keyword.value for keyword in call.keywords if keyword.arg == "cause"]
            given += call.args[:1] if name == "Finding" or (name == "add" and "doctor" in path.name) else []
            for value in given:
                parts = ast.walk(value)
                found |= {
                    part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)
                }
    return {text for text in found if text in CAUSES or ("-" in text and " " not in text)}


def test_the_table_is_complete_and_has_no_more() -> None:
    assert codes() == set(CAUSES)


def test_every_code_has_a_severity_a_meaning_and_advice() -> None:
    for cause in CAUSES.values():
        assert cause.severity in get_args(Severity), cause.code
        assert cause.about in get_args(About), cause.code
        assert cause.meaning, cause.code
        assert cause.advice, cause.code
