"""``hybridge lab run`` as somebody runs it: real processes, a disk that takes no more, and going on afterwards."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from pipelines import load_small_pipelines
from typer.testing import CliRunner

from hybridge.cli.application import application
from hybridge.errors import HybridgeError, RequestError
from hybridge.lab.harness import record
from hybridge.lab.studies import runner, worker
from hybridge.lab.studies.arguments import Arguments
from hybridge.lab.studies.table import table

pytestmark = pytest.mark.usefixtures("studies_share_a_process")


class Done(NamedTuple):
    """A study whose last pictures could not be written, and that was then gone on with from the terminal."""

    cut_off: record.Record
    complaint: str
    finished: record.Record
    screen: str
    path: Path
    heard: list[tuple[int, int, str]]


@pytest.fixture(scope="module")
def done(studies_share_a_process: None, arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Done:
    path = tmp_path_factory.mktemp("study") / runner.RECORD
    in_the_way = path.parent / "pictures" / "channels-last"
    heard: list[tuple[int, int, str]] = []

    def until_the_last(number: int, total: int, what: str) -> None:
        heard.append((number, total, what))
        if what == "channels-last":
            in_the_way.write_text("no folder")

    with pytest.raises(HybridgeError, match="the disk takes no more") as complaint:
        runner.run(arguments, path, progress=until_the_last)
    cut_off = json.loads(path.read_text())
    in_the_way.unlink()
    asked = ["lab", "run", "--resume", str(path)]
    shown = CliRunner().invoke(application, asked, env={"COLUMNS": "250"}, catch_exceptions=False)
    return Done(cut_off, str(complaint.value), json.loads(path.read_text()), shown.stdout, path, heard)


def measured(of: record.Record) -> list[str]:
    return [entry["configuration"] for entry in of["measurements"]]


def test_what_was_measured_is_kept(done: Done) -> None:
    assert measured(done.cut_off) == ["baseline"]
    assert f"--resume {done.path}" in done.complaint
    assert [what for _, _, what in done.heard] == ["looking at the pipeline", "baseline", "channels-last"]


def test_going_on_measures_only_what_is_missing(done: Done) -> None:
    assert measured(done.finished) == ["baseline", "channels-last"]
    assert done.finished["measurements"][0] == done.cut_off["measurements"][0]


def test_the_record(done: Done, arguments: Arguments) -> None:
    assert done.finished["arguments"] == json.loads(json.dumps(asdict(arguments)))
    assert done.finished["pipeline"]["class"] == "StableDiffusionXLPipeline"
    assert done.finished["pipeline"]["parameters"]["unet"] > 10**6
    assert done.finished["environment"]["transformers"]
    baseline, entry = done.finished["measurements"]
    assert entry["outcome"] == "worked"
    assert set(entry["difference"]) == {"cat", "bee"}
    assert all(100 < one["psnr_db"] < 200 for one in entry["difference"].values())
    assert all(one["psnr_db"] is None for one in baseline["difference"].values())
    assert entry["load_s"] > 0
    assert {name: len(samples) for name, samples in entry["seconds"].items()} == {"cat": 2, "bee": 2}


def test_pictures_lie_beside_it_and_nothing_else(done: Done) -> None:
    folder = done.path.parent
    assert {path.name for path in folder.iterdir()} == {"study.json", "pictures"}
    for entry in done.finished["measurements"]:
        for path in entry["pictures"].values():
            with Image.open(folder / path) as picture:
                assert picture.size == (64, 64)
    kept = np.load(folder / "pictures" / "baseline" / "cat.npy")
    assert kept.shape == (1, 64, 64, 3)


def test_the_screen(done: Done) -> None:
    for shown in ("channels-last", "equal", "× baseline", str(done.path)):
        assert shown in done.screen


def test_a_record_is_not_written_over(done: Done, arguments: Arguments) -> None:
    with pytest.raises(RequestError, match=r"there is a record already.*--resume"):
        runner.run(arguments, done.path)


def test_other_arguments_do_not_go_on_with_it(done: Done, arguments: Arguments) -> None:
    with pytest.raises(RequestError, match=r"unlike arguments.*runs 1, expected runs 2"):
        runner.run(replace(arguments, runs=1), done.path, resume=True)
    with pytest.raises(RequestError, match=r"measures what it was begun with: saw --resume and pipeline, runs"):
        command("lab", "run", "tiny", "--resume", done.path, "--runs", 1)
    with pytest.raises(RequestError, match="there is no record to go on with"):
        command("lab", "run", "--resume", done.path.parent / "none.json")


def command(*arguments: object) -> str:
    return CliRunner().invoke(application, [*map(str, arguments)], catch_exceptions=False).stdout


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (["--technique", ""], "unknown technique"),
        (["--technique", "channel-last"], "unknown technique: saw channel-last.*Try: channels-last"),
        (["--stack", "channels-last+"], "unknown technique"),
        (["--size", "100"], "a multiple of 8"),
        (["--ladder", "none"], "none cannot be read"),
        (["no/such/pipeline"], "no such pipeline"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(asked: list[str], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=complaint):
        command("lab", "run", *asked, "--out", tmp_path)
    assert not list(tmp_path.iterdir())


def job(arguments: Arguments, folder: Path, source: str, **further: Any) -> dict[str, Any]:
    tiny = str(Path(source).parent)
    whole = {"folder": str(folder), "tiny": tiny, "out": str(folder), "server": None, "not_scored": []}
    return {**whole, "arguments": asdict(arguments), "not_scored": ["ssim", "lpips", "clip_score"], **further}


def test_a_record_that_cannot_be_written_is_the_one_before(done: Done, tmp_path: Path) -> None:
    path = tmp_path / runner.RECORD
    record.write(done.cut_off, path)
    path.with_name(f"{path.name}.unfinished").mkdir()
    with pytest.raises(HybridgeError, match=r"the disk takes no more.*Try: room on the disk, then --resume"):
        record.write(done.finished, path)
    assert json.loads(path.read_text()) == done.cut_off


def test_whoever_interrupts_it_leaves_nothing_behind(arguments: Arguments, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(arguments, tmp_path / runner.RECORD, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_what_is_left_open_is_settled_by_the_pipeline(arguments: Arguments, source: str, tmp_path: Path) -> None:
    open_ = replace(arguments, device="cpu", dtype="auto", size=None)
    seen = worker.describe(job(open_, tmp_path, source), lambda _: None)
    assert seen["arguments"]["dtype"] == "float32"
    assert seen["arguments"]["size"] == 128
    assert seen["missing"] == {}


def test_a_row_for_every_outcome(done: Done) -> None:
    gone = {"name": "gone", "outcome": "dead", "evidence": None, "reason": "unmaintained", "instead": "compile"}
    entry = {"configuration": "gone", "outcome": "dead", "reason": "unmaintained", "techniques": [gone]}
    shown = table({**done.finished, "measurements": [*done.finished["measurements"], entry]})
    assert shown.rows[2] == ("gone", "dead", *("–",) * 4)
    assert shown.rows[0][3] == "1.00"
    assert all(len(row) == len(shown.columns) for row in shown.rows)


def test_the_catalogue_is_listed() -> None:
    rows = json.loads(command("lab", "list", "--device", "cpu", "--json"))
    (row,) = (row for row in rows if row["name"] == "channels-last")
    assert row["outcome"] is None
    assert row["exactness"] == "rounding"


def test_a_folder_of_stable_diffusion_15(tmp_path: Path) -> None:
    """As the hub has it, without a safety checker: its pipelines name their size in the UNet's config alone."""
    small = load_small_pipelines()
    folder, prompts = tmp_path / "sd15", tmp_path / "prompts.txt"
    small.stable_diffusion(small.vae()).save_pretrained(folder)
    assert json.loads((folder / "model_index.json").read_text())["safety_checker"] == [None, None]
    prompts.write_text("cat 1 a cat\n")
    listed = command("lab", "list", folder)
    assert "remote-vae: no server was named" in listed
    how = [
        "--prompts",
        prompts,
        "--runs",
        1,
        "--steps",
        2,
        "--size",
        64,
        "--device",
        "cpu",
        "--out",
        tmp_path / "out",
    ]
    command("lab", "run", folder, "--technique", "exact-vae", *how)
    found = json.loads((tmp_path / "out" / runner.RECORD).read_text())
    outcomes = {entry["configuration"]: entry["outcome"] for entry in found["measurements"]}
    assert outcomes == {"baseline": "worked", "exact-vae": "worked"}
