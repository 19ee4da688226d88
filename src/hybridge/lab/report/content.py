"""All that a page says, before anybody decides how it looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import RequestError
from ..harness.record import Record, machine
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
        vae, serve: Tables of the other records.
    """

    sources: Sources
    environment: dict[str, Any]
    findings: Findings | None
    summary: Summary | None
    vae: tuple[Table, ...]
    serve: tuple[Table, ...]

    @property
    def where(self) -> str:
        return machine(self.environment)

    @property
    def dates(self) -> str:
        return ", ".join(sorted({source.record["date"] for source in self.sources.all}))

    def numbers(self) -> dict[str, Any]:
        """report.json: what was worked out, the guide's figures apart from it, and the records as they were."""
        rows = self.findings.rows if self.findings else ()
        return {
            "schema": SCHEMA,
            "benchmark": "report",
            "environment": self.environment,
            "summary": [
                {
                    "what": winner.label.en,
                    "configuration": winner.row.name,
                    "facts": [fact.en for fact in winner.facts],
                }
                for winner in (self.summary.winners if self.summary else ())
            ],
            "configurations": [
                {key: value for key, value in asdict(row).items() if key != "folder"}
                | {"title": title(row)._asdict()}
                for row in rows
            ],
            "pareto": {
                measure: [row.name for row in self.findings.front(measure)] for measure in self.findings.measures
            }
            if self.findings
            else {},
            "guide": {
                "source": GUIDE,
                "condition": guide.CONDITION.en,
                "figures": {name: [asdict(one) for one in figures] for name, figures in guide.FIGURES.items()},
                "recipes": [asdict(recipe) for recipe in guide.RECIPES],
            },
            "records": [source.record for source in self.sources.all],
        }


def content(sources: Sources) -> Content:
    """Works out what there is to say.

    Raises:
        RequestError: for a record of ``hybridge bench`` that is not what its command writes.
    """
    environment = sources.environment
    found = findings(sources.studies) if sources.studies else None
    return Content(
        sources,
        environment,
        found,
        summary(found, machine(environment)) if found else None,
        tuple(table for source in sources.vaes for table in _tables(source, _vae_tables)),
        tuple(table for source in sources.serves for table in _tables(source, _serve_tables)),
    )


def _vae_tables(record: Record) -> list[Table]:
    # Imported where there is such a record: it brings torch along.
    from ..vae_bench.report import tables

    return tables(record)


def _serve_tables(record: Record) -> list[Table]:
    from ..serve_bench.report import tables

    return tables(record)


def _tables(source: Source, tables: Callable[[Record], list[Table]]) -> list[Table]:
    try:
        return tables(source.record)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as wrong:
        saw = f"{type(wrong).__name__}: {wrong}"
        raise RequestError(f"{source.path} is damaged", saw=saw, hint="the file as the command wrote it") from None
