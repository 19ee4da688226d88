"""All that a page says, before anybody decides how it looks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from ..harness.record import machine
from ..harness.tables import Table
from ..techniques import guide
from ..techniques.facts import GUIDE
from .findings import Findings, findings
from .sources import Source, Sources
from .summary import Summary, summary, title

#: Of report.json; goes up when a reader of older ones would misread a newer one.
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Content:
    """Of one page.

    Attributes:
        findings, summary: Of the studies; None where there are none.
        tables: Of the other records, by the name of the benchmark.
    """

    sources: Sources
    environment: dict[str, Any]
    findings: Findings | None
    summary: Summary | None
    tables: dict[str, tuple[Table, ...]]

    @property
    def where(self) -> str:
        return machine(self.environment)

    @property
    def dates(self) -> str:
        return ", ".join(sorted({source.record["date"] for source in self.sources.all}))

    def numbers(self) -> dict[str, Any]:
        """report.json: what was worked out, the guide's figures apart from it, and the records as they were."""
        found = self.findings
        return {
            "schema": SCHEMA,
            "benchmark": "report",
            "environment": self.environment,
            "summary": [
                {"what": one.label.en, "configuration": one.row.name, "facts": [fact.en for fact in one.facts]}
                for one in (self.summary.winners if self.summary else ())
            ],
            "configurations": [
                {key: value for key, value in asdict(row).items() if key != "folder"}
                | {"title": title(row)._asdict()}
                for row in (found.rows if found else ())
            ],
            "pareto": {key: [row.name for row in found.front(key)] for key in found.measures} if found else {},
            "guide": {
                "source": GUIDE,
                "condition": guide.CONDITION.en,
                "figures": {name: [asdict(one) for one in figures] for name, figures in guide.FIGURES.items()},
                "recipes": [asdict(recipe) for recipe in guide.RECIPES],
            },
            "records": [source.record for source in self.sources.all],
        }


def content(sources: Sources) -> Content:
    """Works out what there is to say."""
    environment = sources.environment
    found = findings(sources.studies) if sources.studies else None
    said = summary(found, machine(environment)) if found else None
    return Content(sources, environment, found, said, _tables(sources))


def _tables(sources: Sources) -> dict[str, tuple[Table, ...]]:
    found: dict[str, tuple[Table, ...]] = {}
    others: tuple[Source[Any], ...] = (*sources.vaes, *sources.serves)
    for source in others:
        name = source.record["benchmark"]
        # Imported where there is such a record: it brings torch along.
        report = import_module(f"..{name}_bench.report", __package__)
        found[name] = (*found.get(name, ()), *report.tables(source.record))
    return found
