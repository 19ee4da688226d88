"""Text from templates, which lie in a folder ``templates`` of the package that uses them, or in this one's."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(package: str, name: str, filters: dict[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """The text of a template.

    Args:
        package: Whose folder it lies in.
        name: Of the file, ``page.md.jinja``; what is HTML or SVG by its name is escaped.
        filters: That it uses besides Jinja's.
        **values: By the names that it has for them.

    Raises:
        ModuleNotFoundError: without jinja2.
    """
    engine = _engine(package)
    engine.filters.update(filters or {})
    return engine.get_template(name).render(values)


def read(package: str, name: str) -> str:
    """A file of the folder as it is."""
    return resources.files(package).joinpath("templates", name).read_text(encoding="utf-8")


@lru_cache
def _engine(package: str) -> Environment:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(str(__package__))]),
        autoescape=select_autoescape(("html.jinja", "svg.jinja")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
