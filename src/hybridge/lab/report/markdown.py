"""The report as Markdown, in one language: for a pull request, a wiki, a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..harness.words import Language, Text
from ..techniques import guide
from ..techniques.facts import GUIDE
from . import formatting, texts
from .content import Content
from .html import environment_items
from .summary import title
from .table import Line, columns, figure_text, lines


def markdown(content: Content, language: Language) -> str:
    """A page without pictures; what a record says itself stays as it is."""
    into = _Into(language)
    parts = [f"# {into.ui('title')}", f"{_plain(content.where)}; {into.filled('measured_on', date=content.dates)}"]
    if content.summary and content.findings:
        parts += _summary(content, into) + _techniques(content, into)
    parts += _guide(into) if content.findings else []
    for key, tables in (("vae", content.vae), ("serve", content.serve)):
        parts += [f"## {into.ui(key)}"] if tables else []
        for table in tables:
            head = [into(texts.TABLES.get(column, Text(column, column))) for column in table.columns]
            parts += [f"### {into(texts.TABLES.get(table.title, Text(table.title, table.title)))}"]
            parts += [_table(head, table.rows)]
    about = [(into(label), value) for label, value in environment_items(content.environment)]
    parts += [f"## {into.ui('where')}", "\n".join(f"- {_plain(label)}: {_plain(value)}" for label, value in about)]
    return "\n\n".join(parts) + "\n"


class _Into:
    """Picks the language."""

    def __init__(self, language: Language) -> None:
        self.language: Language = language
        self.colon = "：" if language == "zh" else ": "
        self.stop = "；" if language == "zh" else "; "

    def __call__(self, text: Text) -> str:
        return text.into(self.language)

    def ui(self, key: str) -> str:
        return self(texts.UI[key])

    def filled(self, key: str, **values: object) -> str:
        return self(texts.UI[key].filled(**values))


def _summary(content: Content, into: _Into) -> list[str]:
    said = content.summary
    if said is None:
        return []
    parts = [f"## {into.ui('summary')}", " ".join(_plain(into(line)) for line in said.lines)]
    parts += [f"> {into(warning)}" for warning in said.warnings]
    points = [
        f"- **{into(winner.label)}**{into.colon}{_plain(into(title(winner.row)))} — "
        + into.stop.join(into(fact) for fact in winner.facts)
        for winner in said.winners
    ]
    parts += ["\n".join(points)] if points else []
    for outcome, items in said.others.items():
        told = []
        for item in items:
            instead = into(texts.SUMMARY["use"].filled(instead=item.instead)) if item.instead else None
            details = into.stop.join(_plain(text) for text in (item.said, instead) if text)
            told.append(f"- {_plain(into(item.title))}{into.colon if details else ''}{details}")
        parts += [f"### {into(texts.SUMMARY[outcome.replace(' ', '_')])}", "\n".join(told)]
    return parts


def _techniques(content: Content, into: _Into) -> list[str]:
    found = content.findings
    if found is None:
        return []
    names = columns(found)
    measure = into(texts.MEASURES[found.measures[0]]) if found.measures else formatting.NONE
    head = [into.ui("column_name"), into.ui("column_outcome"), *(into.ui(f"column_{name}") for name in names)]
    head += [into.ui("evidence"), into.ui("guide_says")]
    body = [_row(line, len(names), into) for line in lines(found)]
    note = into.filled("table_note", measure=measure)
    return [f"## {into.ui('techniques')}", note, _table(head, body)]


def _row(line: Line, width: int, into: _Into) -> list[str]:
    cells = [into(cell.text) for cell in line.cells] or [formatting.NONE] * width
    said = []
    for name, seen, instead in line.said:
        use = into(texts.SUMMARY["use"].filled(instead=instead)) if instead else None
        text = into.stop.join(part for part in (seen, use) if part)
        said.append(f"{into(name)}{into.colon}{text}" if name and text else text)
    guided = into(line.claim.guide) if line.claim and line.claim.guide else ""
    outcome = into(texts.OUTCOMES[line.row.outcome])
    return [into(line.title), outcome, *cells, " / ".join(filter(None, said)), guided]


def _guide(into: _Into) -> list[str]:
    head = [into.ui(f"guide_{key}") for key in ("preset", "recipe", "time", "memory")] + [into.ui("evidence")]
    body = [
        [
            into(recipe.title),
            " + ".join(into(texts.technique_title(name)) for name in recipe.techniques) or "FP16",
            into(figure_text(recipe.seconds)) if recipe.seconds else formatting.NONE,
            into(figure_text(recipe.memory)) if recipe.memory else formatting.NONE,
            into(recipe.remark) if recipe.remark else "",
        ]
        for recipe in guide.RECIPES
    ]
    head[-1] = into.ui("guide_remark")
    note = into.filled("guide_note", condition=guide.CONDITION)
    return [f"## {into.ui('guide')}", f"{note} {GUIDE}", _table(head, body)]


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(map(_plain, row)) + " |" for row in (head, *body)]
    return "\n".join([rows[0], "|" + "---|" * len(head), *rows[1:]])


def _plain(text: str) -> str:
    """One line, in which nothing is markup: records may come from anybody."""
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
