"""``hybridge lab report``"""

from __future__ import annotations

from pathlib import Path

import typer


def report(
    records: list[Path] = typer.Argument(
        ..., help="Files that `hybridge lab run` and `hybridge bench` wrote; of one machine, measured alike."
    ),
    out: Path = typer.Option(Path("hybridge-report"), help="Folder for report.html, report.md and report.json."),
    language: str = typer.Option("en", help="That the page opens in: en or zh. Both are in it."),
) -> None:
    """One page from records: tables, a plot and pictures, which opens in any browser without a network."""
    from ..errors import RequestError
    from ..lab.harness.words import LANGUAGES

    known = [one for one in LANGUAGES if one == language]
    if not known:
        raise RequestError("unknown language", saw=language, expected=" or ".join(LANGUAGES))
    try:
        from ..lab.report.writing import write

        written = write(records, out, known[0])
    except ModuleNotFoundError as missing:
        raise RequestError(f"a page needs {missing.name}", hint="pip install 'hybridge[lab]'") from None
    typer.echo("written: " + ", ".join(map(str, written)))
