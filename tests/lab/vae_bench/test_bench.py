"""``hybridge bench vae`` as somebody runs it: forked processes, a run that is cut off, and what is left of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
import shared_fork_server
from typer.testing import CliRunner

from hybridge.cli.application import application
from hybridge.errors import EngineFailure, RequestError
from hybridge.lab.harness import record
from hybridge.lab.vae_bench import runner
from hybridge.lab.vae_bench.cases import Arguments

#: One that is measured, one whose budget would be the peak of a rival that was not asked for, one not installed.
RIVALS = ("exact", "exact-tight", "compile")


@pytest.fixture(scope="module")
def arguments(small: str) -> Arguments:
    return Arguments(
        model=small,
        sizes=(64,),
        task="decode",
        dtypes=("float32",),
        device="cpu",
        repeats=1,
        budget_bytes=None,
        tile_pixels=32,
        rivals=RIVALS,
        weights=False,
        limit_s=300.0,
    )


class Done(NamedTuple):
    """A run that was cut off before its last measurement, and then gone on with from the command line."""

    cut_off: record.Record
    finished: record.Record
    screen: str
    path: Path
    heard: list[tuple[int, int, str]]


@pytest.fixture(scope="module")
def done(arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("bench")
    path = folder / "vae.json"
    heard: list[tuple[int, int, str]] = []

    def until_the_last(number: int, total: int, what: str) -> None:
        heard.append((number, total, what))
        if number == total - 1:
            raise KeyboardInterrupt

    asked = ["bench", "vae", arguments.model, "--size", "64", "--device", "cpu", "--repeats", "1", "--tile", "32"]
    asked += ["--rivals", ",".join(RIVALS), "--limit-s", "300", "--resume", str(path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "ask", shared_fork_server.forking_ask(tmp_path_factory.mktemp("forks")))
        patch.setenv("PATH", str(folder))  # where no compiler is
        patch.delenv("CXX", raising=False)
        with pytest.raises(KeyboardInterrupt):
            runner.run(arguments, path, progress=until_the_last)
        cut_off = json.loads(path.read_text())
        shown = CliRunner().invoke(application, asked, env={"COLUMNS": "250"}, catch_exceptions=False)
    shared_fork_server.close_all()
    return Done(cut_off, json.loads(path.read_text()), shown.stdout, path, heard)


def test_a_run_that_is_cut_off_keeps_what_it_measured(done: Done) -> None:
    assert [entry["rival"] for entry in done.cut_off["measurements"]] == ["exact", "exact-tight"]
    assert [what.partition(": ")[2] for _, _, what in done.heard][:2] == ["the roof", "exact"]


def test_going_on_measures_only_what_is_missing(done: Done) -> None:
    assert done.finished["roofs"] == done.cut_off["roofs"]
    assert done.finished["measurements"][:2] == done.cut_off["measurements"]
    assert [entry["rival"] for entry in done.finished["measurements"]] == list(RIVALS)


def test_the_record_holds_raw_samples_and_what_they_depend_on(done: Done, arguments: Arguments) -> None:
    kept = record.read(done.path, "vae")
    exact, tight, compiled = kept["measurements"]
    assert exact["seconds"]
    assert exact["relative_l2"] < 1e-5
    assert exact["plan"]["peak_bytes"] > 0
    assert exact["peak_bytes"] > 0
    assert tight["missing"] == "its budget is the peak of tiled, which this run has not measured"
    assert compiled["missing"] == "no C++ compiler is installed"
    assert kept["arguments"]["rivals"] == list(RIVALS)
    assert kept["arguments"]["seed"] == 0
    assert {"torch", "diffusers", "openvino", "cpu", "instructions", "threads"} <= set(kept["environment"])
    assert kept["roofs"][0]["flops"] == exact["plan"]["flops"]


def test_the_tables_are_on_the_screen_and_on_the_page(done: Done) -> None:
    page = done.path.with_suffix(".md").read_text()
    rows = {
        line.strip("| ").split(" | ")[0]: line.strip("| ").split(" | ")[1:]
        for line in page.splitlines()
        if line.startswith("| ")
    }
    assert rows["exact"][3] == "1.00"  # × exact
    assert rows["exact"][-1].startswith("mode ")
    assert rows["exact, in what tiling took"][-1].startswith("missing: its budget")
    assert rows["torch.compile, channels-last"][-1] == "missing: no C++ compiler is installed"
    assert rows["Device"][:5] == ["Resolution", "dtype", "Time (seconds)", "Memory", "Tiled Time (seconds)"]
    assert float(rows["decode 64×64, float32"][-1]) > 0  # the roof
    for shown in ("The roof", "Tiled Memory", "missing: no C++ compiler is installed", "vae.json", "vae.svg"):
        assert shown in done.screen


def test_the_plot_is_a_picture(done: Done) -> None:
    picture = ElementTree.parse(done.path.with_suffix(".svg")).getroot()  # noqa: S314 - our own file
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    # The one rival that was measured.
    assert len(picture.findall(".//{*}circle")) == 1


def test_a_run_with_other_arguments_does_not_go_on_with_it(done: Done, arguments: Arguments) -> None:
    before = done.path.read_bytes()
    with pytest.raises(RequestError, match=r"unlike arguments.*repeats 2, expected repeats 1"):
        runner.run(replace(arguments, repeats=2), done.path, resume=True)
    assert done.path.read_bytes() == before


def test_a_record_is_not_written_over(done: Done, arguments: Arguments) -> None:
    with pytest.raises(RequestError, match=r"there is a record already.*--resume"):
        runner.run(arguments, done.path)


def test_a_process_that_is_too_slow_is_ended_and_named(arguments: Arguments, tmp_path: Path) -> None:
    with pytest.raises(EngineFailure, match=r"took longer than 0.01 s: ended while starting"):
        runner.run(replace(arguments, limit_s=0.01), tmp_path / "vae.json")


def test_a_rival_that_nobody_knows_is_named() -> None:
    with pytest.raises(RequestError, match="unknown rival: saw openvin"):
        CliRunner().invoke(application, ["bench", "vae", "--rivals", "openvin"], catch_exceptions=False)
