"""The files of a report."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..harness.words import Language
from .content import content
from .html import html
from .markdown import markdown
from .sources import gather


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
    files = {
        "report.html": html(made, language),
        "report.md": markdown(made, language),
        "report.json": json.dumps(made.numbers(), ensure_ascii=False, indent=1) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in files.items():
        path = folder / name
        # All or nothing, as records are written.
        unfinished = path.with_name(f"{name}.unfinished")
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        os.replace(unfinished, path)
        written.append(path)
    return written
