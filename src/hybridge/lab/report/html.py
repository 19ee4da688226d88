"""The page: one file with everything in it, which asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ... import __version__
from ..harness.tables import columns_are_numbers
from ..harness.words import LANGUAGES, Language, Text, same
from ..techniques import guide
from ..techniques.facts import GUIDE
from . import formatting, texts
from .content import Content
from .drawing import Plot, plot
from .findings import Row
from .pictures import sheets
from .summary import composition, names, title
from .table import columns, figure_text, lines

#: (width, height) of the plot on a desk and on a phone, in SVG units, which are CSS pixels there.
_WIDE, _NARROW = (1040, 520), (380, 400)


@dataclass(frozen=True, slots=True)
class Compared:
    """A recipe of the guide, and the same one of ours where it was measured."""

    recipe: guide.Recipe
    composition: Text
    time: Text
    memory: Text
    ratios: str
    ours: Row | None


def html(content: Content, language: Language) -> str:
    """The page, in both languages; ``language`` is the one that it opens in.

    Raises:
        ModuleNotFoundError: without jinja2 or Pillow.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    engine = Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _file("page.js")
    found = content.findings
    page = engine.get_template("page.html.jinja").render(
        language=language,
        languages=LANGUAGES,
        ui=texts.UI,
        outcomes=texts.OUTCOMES,
        measures=texts.MEASURES,
        summary_texts=texts.SUMMARY,
        style=Markup(_file("page.css")),  # noqa: S704 # our own file
        script=Markup(script),  # noqa: S704 # our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
        content=content,
        found=found,
        columns=columns(found) if found else (),
        lines=lines(found) if found else (),
        wide=_plots(content, _WIDE),
        narrow=_plots(content, _NARROW),
        sheets=sheets(found) if found else (),
        recipes=_recipes(content),
        condition=guide.CONDITION,
        guide_source=GUIDE,
        environment=environment_items(content.environment),
        tables=[(name, tables) for name, tables in (("vae", content.vae), ("serve", content.serve)) if tables],
        downloads=[(source.path.name, _data_uri(source.record)) for source in content.sources.all],
        numbers=_data_uri(content.numbers()),
        title=title,
        names_of=names,
        judges={"lpips": "LPIPS", "clip_score": "CLIP"},
        composition=composition,
        measure_text=texts.MEASURES[found.measures[0]] if found and found.measures else same(formatting.NONE),
        translated=lambda english: texts.TABLES.get(english, same(english)),
        aligned=columns_are_numbers,
        show=formatting,
    )
    return str(page)


def _file(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _plots(content: Content, size: tuple[int, int]) -> list[Plot]:
    found = content.findings
    return [plot(found, measure, *size) for measure in found.measures] if found else []


def _recipes(content: Content) -> list[Compared]:
    rows = content.findings.rows if content.findings else ()
    return [_compared(recipe, rows) for recipe in guide.RECIPES]


def _compared(recipe: guide.Recipe, rows: Sequence[Row]) -> Compared:
    ours = next((row for row in rows if sorted(row.techniques) == sorted(recipe.techniques) and row.time), None)
    made_of = [texts.technique_title(name) for name in recipe.techniques] or [texts.TITLES["fp16"]]
    first = guide.RECIPES[0]
    return Compared(
        recipe,
        Text(" + ".join(text.en for text in made_of), " + ".join(text.zh for text in made_of)),
        figure_text(recipe.seconds) if recipe.seconds else same(formatting.NONE),
        figure_text(recipe.memory) if recipe.memory else same(formatting.NONE),
        f"{_to_first(recipe.seconds, first.seconds)} · {_to_first(recipe.memory, first.memory)}",
        ours,
    )


def _to_first(figure: guide.Figure | None, first: guide.Figure | None) -> str:
    if figure is None or first is None:
        return formatting.NONE
    return formatting.ratio(figure.value if "ratio" in figure.quantity else figure.value / first.value)


def environment_items(environment: Mapping[str, Any]) -> list[tuple[Text, str]]:
    """(label, value) of what is known of the machine; a key that this version does not know has its own name."""
    items = []
    for key, value in environment.items():
        if value is None or value == []:
            continue
        if key.endswith("_bytes") and isinstance(value, int):
            text = formatting.size(value)
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        items.append((texts.ENVIRONMENT.get(key, same(key)), text))
    return items


def _data_uri(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, ensure_ascii=False, indent=1)
    return f"data:application/json;base64,{base64.b64encode(text.encode()).decode()}"
