"""What the findings say in words: the winners, what did nothing, and what cannot run here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..harness.words import Text, listed, same
from ..techniques.facts import TechniqueResult
from . import formatting, texts
from .findings import Findings, Measure, Row


@dataclass(frozen=True, slots=True)
class Winner:
    """A configuration that is first in something, such as *Fastest*; each fact is a phrase."""

    label: Text
    row: Row
    facts: tuple[Text, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """A technique that did not work, and what is known of it; texts of the record stay in its own language."""

    title: Text
    said: str | None
    instead: str | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The head of a page.

    Attributes:
        lines: Sentences about the run.
        warnings: Sentences that a reader must not miss.
        others: By outcome: what is left to say of those that did not work.
    """

    lines: tuple[Text, ...]
    warnings: tuple[Text, ...]
    winners: tuple[Winner, ...]
    others: dict[str, tuple[Item, ...]]


def title(row: Row) -> Text:
    """Of a configuration: the technique's, or its own name where it is a stack."""
    if row.techniques == (row.name,):
        return texts.technique_title(row.techniques[0])
    return texts.TITLES["baseline"] if row.is_baseline else same(row.name)


def summary(found: Findings, where: str) -> Summary:
    """In words, and only what was measured."""
    return Summary(_lines(found, where), _warnings(found), _winners(found), _others(found))


def _lines(found: Findings, where: str) -> tuple[Text, ...]:
    asked, ui = found.arguments, texts.UI
    subject = ui["subject"].filled(
        pipeline=found.pipeline.name,
        where=where,
        size=asked.size,
        steps=asked.steps,
        guidance=f"{asked.guidance_scale:g}" if asked.guidance_scale is not None else formatting.NONE,
        dtype=asked.dtype or formatting.NONE,
        batch=asked.batch,
    )
    method = ui["configurations"].filled(
        asked=found.asked, prompts=len(asked.prompts), runs=asked.runs or formatting.NONE
    )
    baseline = found.baseline
    if baseline is None or baseline.time is None:
        return subject, method
    measure = found.measures[0] if found.measures else None
    memory = formatting.size(baseline.memory.get(measure)) if measure else formatting.NONE
    measured = texts.SUMMARY["baseline"].filled(seconds=formatting.seconds(baseline.time.median_s), memory=memory)
    return subject, method, measured


def _warnings(found: Findings) -> tuple[Text, ...]:
    warnings = []
    if found.pipeline.weights == "random":
        warnings.append(texts.UI["random"])
    if len(found.rows) < found.asked:
        warnings.append(texts.UI["unfinished"].filled(done=len(found.rows), asked=found.asked))
    if not any(row.time for row in found.rows):
        warnings.append(texts.SUMMARY["nothing_measured"])
    elif found.baseline is None:
        warnings.append(texts.SUMMARY["no_baseline"])
    return tuple(warnings)


def _winners(found: Findings) -> tuple[Winner, ...]:
    measure = found.measures[0] if found.measures else None
    named = [("fastest", found.fastest())]
    if measure:
        named += [
            ("smallest", found.smallest(measure)),
            ("trade_off", found.trade_off(measure)),
            ("same_picture", found.trade_off(measure, same_picture=True)),
        ]
    # One configuration may win twice; it is told once.
    winners: dict[str, tuple[Row, list[str]]] = {}
    for key, row in named:
        if row:
            winners.setdefault(row.name, (row, []))[1].append(key)
    return tuple(
        Winner(
            listed((texts.SUMMARY[key] for key in keys), " · ", " · "),
            row,
            _facts(row, measure, is_rule=bool({"trade_off", "same_picture"} & set(keys))),
        )
        for row, keys in winners.values()
    )


def _facts(row: Row, measure: Measure | None, *, is_rule: bool) -> tuple[Text, ...]:
    said, facts = texts.SUMMARY, []
    if row.time:
        key = "time" if row.is_baseline or row.time_ratio is None else "time_and_ratio"
        facts.append(
            said[key].filled(seconds=formatting.seconds(row.time.median_s), ratio=formatting.ratio(row.time_ratio))
        )
    if row.within_noise and not row.is_baseline:
        facts.append(said["noise"])
    if measure and measure in row.memory:
        compared = row.memory_ratios.get(measure)
        key = "memory" if row.is_baseline or compared is None else "memory_and_ratio"
        facts.append(
            said[key].filled(memory=formatting.size(row.memory[measure]), ratio=formatting.ratio(compared))
        )
    if row.difference and row.difference.equal:
        facts.append(Text("the same picture, bit for bit", "图像逐位相同"))
    elif row.difference and row.difference.psnr_db is not None:
        facts.append(same(f"PSNR {formatting.number(row.difference.psnr_db, 1)} dB"))
    if is_rule:
        facts.append(said["rule"])
    return tuple(facts)


def _others(found: Findings) -> dict[str, tuple[Item, ...]]:
    others: dict[str, dict[str, Item]] = {key: {} for key in ("no effect", "unavailable", "dead", "failed")}
    for row in found.rows:
        for part in row.parts:
            if part.outcome in others:
                others[part.outcome].setdefault(part.name, _item(part))
        if row.outcome == "failed" and not any(part.outcome == "failed" for part in row.parts):
            others["failed"][row.name] = Item(title(row), row.reason, None)
    return {outcome: tuple(items.values()) for outcome, items in others.items() if items}


def _item(part: TechniqueResult) -> Item:
    said = part.evidence if part.outcome == "no effect" else part.reason
    return Item(texts.technique_title(part.name), said or part.reason or part.evidence, part.instead)


def made_of(techniques: Iterable[str]) -> Text:
    """What a stack is made of."""
    return listed(map(texts.technique_title, techniques), " + ", " + ")


def names(rows: Iterable[Row]) -> Text:
    """Titles of rows, one after the other."""
    return listed(title(row) for row in rows)
