"""What verbs print on consoles that are narrow, know no UTF-8, or are none."""

from __future__ import annotations

import io
import json
import re
import sys
import warnings
from pathlib import Path

import pytest
from rich.cells import cell_len

from hybridge.cli import main
from hybridge.cli.console import screen, show_table
from hybridge.lab.advisor.advice import advise
from hybridge.lab.estimator.types import Setup
from hybridge.models import CATALOGUE

pytestmark = pytest.mark.usefixtures("studies_share_a_process")


def shown(
    *arguments: object, encoding: str = "utf-8", columns: int = 200, status: int = 0, **variables: str
) -> str:
    """What a verb writes into a stream of this encoding, both streams together."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    ended = 0
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", ["hybridge", *map(str, arguments)])
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        for name, value in {"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb", **variables}.items():
            patch.setenv(name, value)
        try:
            main()
        except SystemExit as end:
            ended = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                stream.write(end.code)
    text = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert ended == status, text
    return text


VERBS = [
    ("models",),
    ("plan", "starter", "--size", "512", "--ops"),
    ("lab", "estimate", "--pipeline", "sd15"),
    ("lab", "estimate", "--guide"),
    ("lab", "advise", "--pipeline", "sd15", "--vram", "8", "--ram", "16"),
    ("--help",),
    ("--version",),
    *(
        (*verb.split(), "--help")
        for verb in ("demo", "serve", "encode", "decode", "bench vae", "lab run", "keys add")
    ),
]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk", "latin-1"])
@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_consoles_that_know_no_utf_8(verb: tuple[str, ...], encoding: str) -> None:
    text = shown(*verb, encoding=encoding)
    assert "?" not in text.replace("optimize?", ""), text


def test_look_alikes() -> None:
    said = shown("plan", "starter", "--size", "512", "--ops", encoding="ascii")
    assert "decode of 1 x 512x512" in said
    assert re.search(r"^\|.* 128x64x64 ", said, re.MULTILINE)
    assert len({len(line) for line in said.splitlines() if line.startswith("|")}) == 1  # columns stay in line


@pytest.mark.parametrize("encoding", ["ascii", "gbk"])
def test_errors_are_shown(encoding: str) -> None:
    assert "such as 1024 or 768x1024" in shown("plan", "starter", "--size", "5²", encoding=encoding, status=1)


def test_techniques_of_a_pipeline() -> None:
    """The process that looks at it writes in an encoding of its own, whatever this one's is."""
    said = shown("lab", "list", encoding="gbk", PYTHONIOENCODING="gbk")
    assert "fp16" in said


def test_json_is_json_in_every_encoding() -> None:
    assert json.loads(shown("models", "--json", encoding="ascii"))
    assert json.loads(shown("plan", "starter", "--json", encoding="ascii"))


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("verb", VERBS[:5], ids=" ".join)
def test_tables_break_between_words_only(verb: tuple[str, ...], columns: int) -> None:
    wide = set(re.findall(r"[^\s│┃|]+", shown(*verb, columns=400)))
    lines = shown(*verb, columns=columns).splitlines()
    drawn = [line for line in lines if line[:1] in "┃│┏┡└" and line]
    listed = [line for line in lines if line.startswith("  ")]
    assert drawn or listed
    assert all(cell_len(line) <= columns for line in drawn)
    for line in drawn:
        if line[0] in "┃│":
            assert set(re.findall(r"[^\s│┃]+", line)) <= wide, line


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_repositories_stay_whole(columns: int) -> None:
    said = shown("models", columns=columns)
    for name in ("sd3", "flux", "sdxl"):
        assert f"{CATALOGUE[name].source}" in said


@pytest.mark.parametrize("columns", [30, 60, 80])
def test_code_to_paste_is_not_wrapped(columns: int) -> None:
    code = advise(Setup("sdxl"), 8 * 10**9).code
    assert code.strip() in shown("lab", "advise", "--vram", "8", "--ram", "64", columns=columns)


def test_no_colour_where_none_is_wanted(tmp_path: Path) -> None:
    for variables in ({"NO_COLOR": "1", "TERM": "xterm"}, {"TERM": "dumb"}):
        assert "\x1b[3" not in shown("models", **variables)


def test_a_table_in_a_list_where_there_is_no_room() -> None:
    stream = io.StringIO()
    console = screen()
    console.file, console.width = stream, 20
    show_table(
        console, ("name", "what", ""), [("one", "incomprehensibilities", "x"), ("two", "short", "")], title="T"
    )
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert lines == ["T", "one", "  what: incomprehensibilities", "  x", "two", "  what: short"]


@pytest.mark.parametrize(("typed", "meant"), [(("modls",), "models"), (("lab", "lst"), "list")])
def test_the_nearest_command_is_named(typed: tuple[str, ...], meant: str) -> None:
    assert f"Did you mean '{meant}'?" in shown(*typed, status=2)


def test_without_arguments_there_is_help() -> None:
    assert "Hybrid inference that you host yourself" in shown(status=2)
