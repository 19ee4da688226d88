"""The large table: a line of numbers for each configuration, with what was seen and what its source claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..harness.tables import shown
from ..harness.words import Text, listed, same
from ..studies.arguments import BASELINE
from ..techniques import guide
from ..techniques.facts import FACTS
from . import formatting
from .findings import Findings, Measure, Row, WorstDifference
from .summary import made_of, title
from .texts import MEASURES, QUANTITIES, UI, technique_title


@dataclass(frozen=True, slots=True)
class Cell:
    """A number.

    Attributes:
        value: As it is sorted; None comes last.
        about: What to say to those who point at it.
        is_faint: It says less than it seems to.
        is_better: A ratio that was worth it.
    """

    text: Text
    value: float | None = None
    about: Text | None = None
    is_faint: bool = False
    is_better: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """What a technique's source promises, and what the guide's own figures are."""

    text: Text | None
    source: str | None
    guide: Text | None


@dataclass(frozen=True, slots=True)
class Line:
    """A configuration as the table shows it.

    Attributes:
        cells: By column, without name and outcome; empty where nothing could be measured.
        said: (technique or None where there is just one, what was seen of it or why not, what to use instead); in
            the record's own words.
        claim: Of its technique; those of a stack stand in lines of their own.
        search: All that the filter looks through, in lower case.
    """

    row: Row
    title: Text
    composition: Text | None
    cells: tuple[Cell, ...]
    said: tuple[tuple[Text | None, str | None, str | None], ...]
    claim: Claim | None
    search: str


#: A ratio from which a gain is set in colour: a tenth.
_WORTH = 0.9

#: What every study has; others come where pictures could be scored.
_COLUMNS: tuple[str, ...] = (
    "seconds",
    "time_ratio",
    "step",
    "first",
    "preparation",
    "memory",
    "memory_ratio",
    "calls",
)
_COLUMNS += ("psnr", "ssim", "largest")


def columns(found: Findings) -> tuple[str, ...]:
    """Names of the columns of numbers, in order."""
    every = [row.difference for row in found.rows if row.difference]
    more = {"lpips": "lpips", "clip": "clip_score", "caption": "caption"}
    scored = [name for name, key in more.items() if any(getattr(one, key) is not None for one in every)]
    return (*_COLUMNS, *scored)


def lines(found: Findings) -> tuple[Line, ...]:
    """The table's lines, in the record's order."""
    names = columns(found)
    measure = found.measures[0] if found.measures else None
    return tuple(_line(row, names, measure) for row in found.rows)


def _line(row: Row, names: Sequence[str], measure: Measure | None) -> Line:
    cells = _cells(row, measure) if row.time else {}
    said = tuple(
        (technique_title(part.name) if row.is_stack else None, part.evidence or part.reason, part.instead)
        for part in row.parts
    )
    # A stack's own reason repeats that of its worst technique.
    if row.reason and not any(part.reason and row.reason.endswith(part.reason) for part in row.parts):
        said = (*said, (None, row.reason, None))
    if row.why_not_counted:
        said = (*said, (UI["not_counted"], row.why_not_counted, None))
    claimed = (BASELINE,) if row.is_baseline else row.techniques
    composition = made_of(row.techniques) if row.is_stack else None
    words = [row.name, *title(row), *(composition or ()), *row.techniques]
    words += [text or "" for _, *texts in said for text in texts]
    return Line(
        row,
        title(row),
        composition,
        tuple(cells[name] for name in names if name in cells),
        said,
        _claim(claimed[0]) if len(claimed) == 1 else None,
        " ".join(words).lower(),
    )


def _cells(row: Row, measure: Measure | None) -> dict[str, Cell]:
    time, difference = row.time, row.difference or WorstDifference()
    if time is None:
        return {}
    about = UI["range"].filled(
        lowest=formatting.seconds(time.lowest_s), highest=formatting.seconds(time.highest_s), samples=time.samples
    )
    memory = row.memory.get(measure) if measure else None
    memory_ratio = row.memory_ratios.get(measure) if measure else None
    is_noise = row.within_noise and not row.is_baseline
    return {
        "seconds": Cell(same(formatting.seconds(time.median_s)), time.median_s, about),
        "time_ratio": Cell(
            same(formatting.ratio(row.time_ratio)),
            row.time_ratio,
            UI["noise"] if is_noise else None,
            is_noise or not row.counts,
            not is_noise and row.counts and _is_better(row.time_ratio),
        ),
        "step": Cell(same(formatting.seconds(row.step_s)), row.step_s),
        "first": Cell(same(formatting.seconds(row.first_s)), row.first_s),
        "preparation": Cell(same(formatting.seconds(row.preparation_s)), row.preparation_s),
        "memory": Cell(same(formatting.size(memory)), memory, _other_memory(row)),
        "memory_ratio": Cell(
            same(formatting.ratio(memory_ratio)),
            memory_ratio,
            is_faint=not row.counts,  # a technique without effect has gained nothing
            is_better=row.counts and _is_better(memory_ratio),
        ),
        "calls": Cell(same(formatting.calls(row.calls)), float(sum(row.calls)) if row.calls else None),
        # Equal pictures are above all others.
        "psnr": Cell(UI["equal"], 1e9) if difference.equal else _number(difference.psnr_db, 1),
        "ssim": _number(difference.ssim, 3),
        "largest": Cell(same(formatting.small(difference.largest)), difference.largest),
        "lpips": _number(difference.lpips, 3),
        "clip": _number(difference.clip_score, 2),
        "caption": Cell(same(shown(difference.caption, ".0%")), difference.caption),
    }


def _is_better(value: float | None) -> bool:
    return value is not None and value <= _WORTH


def _number(value: float | None, digits: int) -> Cell:
    return Cell(same(formatting.number(value, digits)), value)


def _other_memory(row: Row) -> Text | None:
    known = [
        Text(f"{MEASURES[key].en}: {formatting.size(count)}", f"{MEASURES[key].zh}：{formatting.size(count)}")
        for key, count in row.memory.items()
    ]
    return listed(known) if known else None


def _claim(name: str) -> Claim | None:
    facts = FACTS.get(name)
    text = Text(facts.claim, facts.claim_zh) if facts else None
    guided = listed(map(figure_text, guide.FIGURES[name])) if name in guide.FIGURES else None
    return Claim(text, facts.source if facts else None, guided) if text or guided else None


def figure_text(figure: guide.Figure | None) -> Text:
    """A figure of the guide, with its condition."""
    if figure is None:
        return same(formatting.NONE)
    # As the guide rounds them.
    value = f"{figure.value / guide.GB:g} GB" if "bytes" in figure.quantity else f"{figure.value:g}"
    bound = f"{figure.bound} " if figure.bound else ""
    said = QUANTITIES[figure.quantity].filled(value=f"{bound}{value}")
    return Text(f"{said.en} ({figure.when.en})", f"{said.zh}（{figure.when.zh}）") if figure.when else said
