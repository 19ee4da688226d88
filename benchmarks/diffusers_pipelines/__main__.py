"""Whether diffusers' pipelines give their own pictures when hybridge runs their VAE.

``python benchmarks/diffusers_pipelines`` tries small pipelines that are made here; ``--tests FOLDER`` those of the
folder ``tests/pipelines`` of diffusers' repository.  It writes a record (JSON) and a table (Markdown).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> int:
    """Tries every case; 1 if a picture was wrong or a call crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tests", type=Path, metavar="FOLDER", help="diffusers' tests/pipelines, instead of our own"
    )
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose name has this word")
    parser.add_argument("--out", type=Path, default=Path("hybridge-bench"), metavar="FOLDER", help="(%(default)s)")
    parser.add_argument("--write", action="store_true", help="into this repository: its record and its document")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers is imported: nothing is fetched
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")

    import table
    import torch
    import trial

    from hybridge.lab.harness.environment import environment

    failed: list[dict[str, Any]] = []
    records = []
    for case in _cases(arguments.tests, failed):
        if arguments.only.lower() not in case.name.lower():
            continue
        began = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            records.append(trial.run(case))
        ways = "  ".join(f"{way}: {records[-1][way]['kind']}" for way in trial.WAYS if way in records[-1])
        said = ways or records[-1]["local"]
        print(f"{case.name}  {said}  ({time.perf_counter() - began:.1f} s)", flush=True)
    records += failed
    document = {
        "schema": 1,
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(torch.device("cpu")),
        "cases": records,
    }
    record, page = (
        (HERE.parent / "records" / "diffusers-pipelines.json", HERE.parent.parent / "docs" / "diffusers.md")
        if arguments.write
        else (arguments.out / "diffusers-pipelines.json", arguments.out / "diffusers-pipelines.md")
    )
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(document, indent=1) + "\n")
    page.write_text(table.page(document))
    print(f"{table.summary(records)}\n{record}\n{page}")
    return int(any(table.is_fault(found) for found in records))


def _cases(tests: Path | None, failed: list[dict[str, Any]]) -> Any:
    if tests is not None:
        import repository

        return repository.cases(tests, failed)
    import flux
    import later
    import stable_diffusion
    import transformers_2d
    import videos
    import vq

    sources = (stable_diffusion, flux, transformers_2d, later, videos, vq)
    return itertools.chain.from_iterable(source.cases() for source in sources)


if __name__ == "__main__":
    sys.exit(main())
