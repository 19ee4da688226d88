"""The files of a report: the page in both languages, Markdown in one of them, and the numbers."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ..harness import templates
from ..harness.record import write_whole
from ..harness.tables import columns_are_numbers
from ..harness.words import Language, Text, same
from ..techniques import guide
from ..techniques.facts import GUIDE
from . import formatting, texts
from .content import Content, content
from .drawing import plot
from .pictures import sheets
from .sources import gather
from .summary import made_of, names, title
from .table import columns, figure_text, lines

_PACKAGE = str(__package__)


def write(records: Sequence[Path], folder: Path, language: Language = "en") -> list[Path]:
    """Makes ``report.html``, ``report.md`` and ``report.json`` in a folder, and returns their paths.

    Args:
        records: Files that ``hybridge lab run`` and ``hybridge bench`` wrote, of one environment.
        folder: Made if it is not there.
        language: That the page opens in, and of the Markdown.

    Raises:
        RequestError: see :func:`~.sources.gather`.
        ModuleNotFoundError: without jinja2 or Pillow.
    """
    made = content(gather(records))
    values, filters = _values(made, language), _filters(language)
    files = {
        "report.html": templates.render(_PACKAGE, "page.html.jinja", filters, **_assets(), **values),
        "report.md": templates.render(_PACKAGE, "page.md.jinja", filters, **values),
        "report.json": json.dumps(made.numbers(), ensure_ascii=False, indent=1) + "\n",
    }
    for name, text in files.items():
        write_whole(folder / name, text)
    return [folder / name for name in files]


def _values(content: Content, language: Language) -> dict[str, Any]:
    """What the templates name."""
    found = content.findings

    def plots(width: int, height: int) -> list[Any]:
        return [plot(found, measure, width, height) for measure in found.measures] if found else []

    return {
        "language": language,
        "version": __version__,
        "content": content,
        "found": found,
        "texts": texts,
        "ui": texts.UI,
        "columns": columns(found) if found else (),
        "lines": lines(found) if found else (),
        "measure": texts.MEASURES[found.measures[0]] if found and found.measures else same(formatting.NONE),
        "plots": plots,
        "sheets": sheets(found) if found else (),
        "guide": guide,
        "guide_source": GUIDE,
        "figure_text": figure_text,
        "environment": _environment(content.environment),
        "title": title,
        "names_of": names,
        "made_of": made_of,
        "aligned": columns_are_numbers,
        "show": formatting,
        "data_uri": _data_uri,
    }


def _filters(language: Language) -> dict[str, Any]:
    return {
        "into": lambda text: text.into(language),
        "plain": _plain,
        "table_text": texts.table_text,
        "technique_title": texts.technique_title,
    }


def _assets() -> dict[str, Any]:
    """What the page has of other files; its policy allows the script by its hash."""
    from markupsafe import Markup

    style, script = (templates.read(_PACKAGE, name) for name in ("page.css", "page.js"))
    return {
        "style": Markup(style),  # noqa: S704 # our own file
        "script": Markup(script),  # noqa: S704 # our own file
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def _environment(environment: Mapping[str, Any]) -> list[tuple[Text, str]]:
    """(label, value) of what is known of the machine; a key that this version does not know has its own name."""

    def shown(key: str, value: Any) -> str:
        if key.endswith("_bytes") and isinstance(value, int):
            return formatting.size(value)
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    return [
        (texts.ENVIRONMENT.get(key, same(key)), shown(key, value))
        for key, value in environment.items()
        if value not in (None, [])
    ]


def _plain(text: str) -> str:
    """One line, in which nothing is markup: records may come from anybody."""
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _data_uri(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, ensure_ascii=False, indent=1)
    return f"data:application/json;base64,{base64.b64encode(text.encode()).decode()}"
