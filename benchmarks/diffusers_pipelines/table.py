"""What came out of the trials, as a page for people."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from trial import ROUNDING, WAYS

_FAULTS = ("wrong", "crashed")


def is_fault(record: dict[str, Any]) -> bool:
    """Whether hybridge did something wrong."""
    return any(record[way]["kind"] in _FAULTS for way in WAYS if way in record)


def summary(records: list[dict[str, Any]]) -> str:
    """Counts, in one line."""
    tried = [record for record in records if "local" not in record]
    classes = {record["name"].split()[0] for record in tried}
    counts = []
    for way in WAYS:
        kinds = Counter(record[way]["kind"] for record in tried)
        counts.append(f"{way}: " + ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())))
    return f"{len(tried)} cases of {len(classes)} pipeline classes. " + "; ".join(counts)


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    records = document["cases"]
    tried = [record for record in records if "local" not in record]
    version = document["environment"]["diffusers"]
    lines = [
        "# Every pipeline of diffusers",
        "",
        "This page is written by `python benchmarks/diffusers_pipelines --write`.",
        f"It was written on {document['date']} with diffusers {version}.",
        "",
        _INTRODUCTION,
        "",
        "## Counts",
        "",
        "| | equal, bitwise | equal, within rounding | refused | wrong | crashed | does not apply |",
        "|---|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        kinds = Counter(record[way]["kind"] for record in tried)
        order = ("bitwise", "rounding", "refused", "wrong", "crashed", "none")
        lines.append(f"| {_TITLES[way]} | " + " | ".join(str(kinds[kind]) for kind in order) + " |")
    classes = {record["name"].split()[0] for record in tried}
    lines += ["", f"{len(tried)} cases of {len(classes)} pipeline classes.", "", "## Cases", ""]
    notes: dict[str, int] = {}
    lines += ["| pipeline | VAE | connect | vae=None | exact |", "|---|---|---|---|---|"]
    for family, group in itertools.groupby(tried, key=lambda record: record["family"]):
        lines.append(f"| **{family}** | | | | |")
        for record in group:
            cells = [_cell(record, way, notes) for way in WAYS]
            lines.append(f"| {record['name']} | {record['vae']} | {' | '.join(cells)} |")
    lines += ["", "### Notes", ""]
    lines += [f"{number}. {said}" for said, number in notes.items()]
    if missing := [record for record in records if "local" in record]:
        lines += ["", "## What did not run without hybridge either", ""]
        lines += [f"* {record['name']}: `{record['local'][:160]}`" for record in missing]
    return "\n".join(lines) + "\n"


_TITLES = {"connect": "`connect`, with its VAE", "vae=None": "`connect`, with `vae=None`", "exact": "`exact`"}

_INTRODUCTION = f"""\
Each pipeline is built with small random weights on the CPU, in float32, and called once with its VAE beside it.
The same call is then made in three ways, and the pictures are compared:

* **connect**: `hybridge.connect(pipe, server)`. The server has this pipeline's own VAE and runs the plain module,
  so that a difference could only come from the pipeline or from the wire.
* **vae=None**: the same, for the pipeline built with `vae=None`, where its class allows that.
* **exact**: `pipe.vae = hybridge.exact(pipe.vae)`. Each call gets the least of 50, 70 and 90 % of the memory that
  it would take as a whole, where one of them is enough, so that it runs in strips.

*Bitwise*: every number of the result is the same. A number is the largest difference of two numbers in [0, 1], and
is within rounding: below {ROUNDING:.4f}, which is half a step of an 8-bit picture. *Refused*: `connect` raised an
error and changed nothing. *Asked*: `connect` asks for `model=` first, because nothing tells which VAE belongs to
the class, or because the case's VAE is not the one that the class was published with. A dash: there is no such way.

```bash
python benchmarks/diffusers_pipelines                # these pipelines, with the diffusers that is installed
python benchmarks/diffusers_pipelines --only Flux    # some of them
python benchmarks/diffusers_pipelines --tests diffusers/tests/pipelines  # those of diffusers' own tests
```

With `--tests`, no network is needed: small models that the tests would fetch are replaced by ones made in code.
The command ends with 1 if a picture is wrong or a call crashes. The record is
[diffusers-pipelines.json](../benchmarks/records/diffusers-pipelines.json)."""


def _cell(record: dict[str, Any], way: str, notes: dict[str, int]) -> str:
    found = record[way]
    kind, said = found["kind"], found["said"]
    who = record["name"].split()[0]
    said = said.replace(f"this {who}", "this pipeline").replace(who, "the pipeline")
    if way == "exact" and kind in ("bitwise", "rounding"):
        said = ""
    if kind == "rounding":
        cell = f"{found['difference']:.0e}"
    elif kind == "none":
        return "–"
    else:
        cell = kind
    if not said:
        return cell
    if kind in ("bitwise", "rounding"):
        return f"{cell}, asked"
    number = notes.setdefault(said, len(notes) + 1)
    return f"{cell} ({number})"
