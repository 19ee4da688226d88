"""What the public packages offer: ``__all__``, what the documents use, and what is resolved lazily."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import hybridge

ROOT = Path(__file__).parents[1]
PACKAGES = ("hybridge", "hybridge.client", "hybridge.engine", "hybridge.models", "hybridge.protocol")


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_exists_once(name: str) -> None:
    package = importlib.import_module(name)
    assert len(set(package.__all__)) == len(package.__all__)
    assert [one for one in package.__all__ if getattr(package, one, None) is None] == []
    assert set(package.__all__) <= set(dir(package))


@pytest.mark.parametrize("name", PACKAGES[1:])
def test_whatever_a_package_takes_from_its_modules_is_public(name: str) -> None:
    package = importlib.import_module(name)
    tree = ast.parse(Path(package.__file__ or "").read_text(encoding="utf-8"))
    taken = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert taken == set(package.__all__)


def test_lazy_names_are_those_of_their_modules() -> None:
    assert set(hybridge.__all__) == {*hybridge._HOME, "__version__"}
    for name, module in hybridge._HOME.items():
        assert getattr(hybridge, name) is getattr(importlib.import_module(f"hybridge.{module}"), name)
    with pytest.raises(AttributeError, match="no attribute 'Sever'"):
        hybridge.Sever  # noqa: B018


def test_type_checkers_find_lazy_names_where_they_are_resolved() -> None:
    tree = ast.parse(Path(hybridge.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    told = {alias.name: one.module for one in block.body if isinstance(one, ast.ImportFrom) for alias in one.names}
    assert told == hybridge._HOME


def imports_in(text: str) -> Iterator[tuple[str, str]]:
    """Every ``from hybridge… import NAME`` of a document or a script."""
    for module, names in re.findall(r"^\s*from (hybridge[\w.]*) import \(?([\w, ]+)", text, re.MULTILINE):
        yield from ((module, name.strip()) for name in names.split(",") if name.strip())


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.py")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_documents_use_public_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for module, name in imports_in(text):
        package: ModuleType = importlib.import_module(module)
        assert name in getattr(package, "__all__", dir(package)), f"{module} has no {name}"
    used = set(re.findall(r"(?<![\w./'-])hybridge\.(\w+)\(", text))
    assert used <= set(hybridge.__all__), used - set(hybridge.__all__)
