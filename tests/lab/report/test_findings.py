"""What is worked out from samples, on numbers that can be checked in one's head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from studies import MB, PROMPTS, written

from hybridge.lab.report.drawing import plot
from hybridge.lab.report.findings import Findings, findings
from hybridge.lab.report.sources import gather
from hybridge.lab.report.summary import summary
from hybridge.lab.report.table import columns, lines


def measured(name: str, seconds: list[float], exact: int | None = None, **more: Any) -> dict[str, Any]:
    return {
        "configuration": name,
        "outcome": "worked",
        "reason": None,
        "techniques": [] if name == "baseline" else [{"name": name, "outcome": "worked", "evidence": "seen"}],
        "seconds": {PROMPTS[0]["name"]: seconds},
        "steps": 10,
        "denoiser_calls": [2] * 10,
        "weights_bytes": 100 * MB,
        "peak": {"exact_bytes": exact, "resident_bytes": 500 * MB},
        **more,
    }


def found(tmp_path: Path, *measurements: dict[str, Any], name: str = "study.json") -> Findings:
    return findings(gather([written(tmp_path / name, list(measurements), side=8)]).studies)


BASELINE = measured("baseline", [3.9, 4.0, 4.1], exact=100 * MB)


def test_ratios_are_to_the_baseline_of_the_same_record(tmp_path: Path) -> None:
    slow = measured("baseline", [7.9, 8.0, 8.1], exact=100 * MB)
    paths = [
        written(tmp_path / "a.json", [BASELINE, measured("deepcache", [2.0], exact=300 * MB)], side=8),
        written(tmp_path / "b.json", [slow, measured("tgate", [2.0])], side=8),
    ]
    rows = {row.name: row for row in findings(gather(paths).studies).rows}
    assert rows["deepcache"].time_ratio == 0.5
    assert rows["deepcache"].memory_ratios["counted"] == 2.0
    assert rows["tgate"].time_ratio == 0.25
    assert rows["deepcache"].step_s == 0.2
    assert next(iter(rows)) == "baseline"


def test_overlapping_samples_are_noise_and_no_gain(tmp_path: Path) -> None:
    rows = found(tmp_path, BASELINE, measured("freeu", [3.5, 3.6, 3.95]), measured("pab", [3.5, 3.6, 3.7])).rows
    assert [row.within_noise for row in rows[1:]] == [True, False]


def test_a_batch_is_shared_among_its_pictures(tmp_path: Path) -> None:
    path = written(tmp_path / "study.json", [BASELINE], side=8)
    path.write_text(path.read_text().replace('"batch": 1', '"batch": 4'), encoding="utf-8")
    row = findings(gather([path]).studies).rows[0]
    assert row.time is not None
    assert row.time.median_s == 1.0
    assert row.step_s == 0.4


def test_the_front_and_the_winners(tmp_path: Path) -> None:
    result = found(
        tmp_path,
        BASELINE,  # 4 s, 200 MB
        measured("deepcache", [2.0], exact=200 * MB),
        measured("group-offload", [5.0], exact=0, weights_bytes=50 * MB, difference=None),
        measured("attention-vanilla", [6.0], exact=300 * MB),
        measured("openvino", [1.0]),  # no exact memory
        measured("tome", [0.5], exact=1, outcome="no effect"),
    )
    assert [row.name for row in result.front("counted")] == ["deepcache", "baseline", "group-offload"]
    assert result.fastest() is not None
    assert [
        row.name for row in (result.fastest(), result.smallest("counted"), result.trade_off("counted")) if row
    ] == [
        "openvino",
        "group-offload",
        "group-offload",
    ]
    drawn = plot(result, "counted", 800, 400)
    assert {point.row.name for point in drawn.points} == {
        "baseline",
        "deepcache",
        "group-offload",
        "attention-vanilla",
    }
    assert drawn.missing is not None
    assert "OpenVINO" in drawn.missing.zh
    assert {point.row.name for point in plot(result, "resident", 800, 400).points} >= {"openvino"}


def test_a_picture_that_shows_something_else_wins_nothing(tmp_path: Path) -> None:
    def apart(psnr_db: float | None) -> dict[str, Any]:
        return {"portrait": {"psnr_db": psnr_db, "ssim": 0.1, "largest": 1.0, "mean": 0.5}}

    result = found(
        tmp_path,
        BASELINE,
        measured("fp16", [0.1], exact=1, difference=apart(6.0)),  # black
        measured("tome", [0.2], exact=1, difference=apart(None)),  # not a number
        measured("deepcache", [2.0], exact=100 * MB, difference=apart(16.0)),  # other details
    )
    winners = (result.fastest(), result.smallest("counted"), result.trade_off("counted"))
    assert [row.name for row in winners if row] == ["deepcache"] * 3
    assert [row.name for row in result.front("counted")] == ["deepcache"]


def test_what_had_no_effect_has_gained_nothing(tmp_path: Path) -> None:
    result = found(
        tmp_path,
        BASELINE,
        measured("tome", [0.5], exact=1, outcome="no effect"),
        measured("deepcache", [0.5], exact=1),
    )
    cells = {line.row.name: dict(zip(columns(result), line.cells, strict=True)) for line in lines(result)}
    for column in ("time_ratio", "memory_ratio"):
        assert (cells["tome"][column].is_better, cells["tome"][column].is_faint) == (False, True)
        assert (cells["deepcache"][column].is_better, cells["deepcache"][column].is_faint) == (True, False)


def test_equal_pictures_are_equal_and_broken_ones_are_not(tmp_path: Path) -> None:
    equal = {"portrait": {"psnr_db": None, "ssim": 1.0, "largest": 0.0, "mean": 0.0}}
    black = {"portrait": {"psnr_db": None, "ssim": float("nan"), "largest": float("nan"), "mean": float("nan")}}
    worst: dict[str, dict[str, float]] = {
        "portrait": {"psnr_db": 50.0, "ssim": 0.9, "largest": 0.1, "mean": 0.01, "lpips": 0.2, "clip_score": 30.0},
        "macro": {"psnr_db": 30.0, "ssim": 0.99, "largest": 0.3, "mean": 0.01, "lpips": 0.1, "clip_score": 32.0},
    }
    worst["portrait"]["caption"], worst["macro"]["caption"] = 1.0, 0.0
    result = found(
        tmp_path,
        BASELINE,
        measured("exact-vae", [4.0], difference=equal),
        measured("fp16", [4.0], difference=black),
        measured("deepcache", [4.0], difference=worst),
    )
    rows = {row.name: row for row in result.rows}
    assert rows["exact-vae"].keeps_the_picture
    assert not rows["fp16"].keeps_the_picture
    difference = rows["deepcache"].difference
    assert difference is not None
    assert (difference.psnr_db, difference.ssim, difference.largest) == (30.0, 0.9, 0.3)
    assert (difference.lpips, difference.clip_score) == (0.2, 31.0)
    assert columns(result)[-3:] == ("lpips", "clip", "caption")
    shown = {line.row.name: [cell.text.en for cell in line.cells] for line in lines(result)}
    assert "equal" in shown["exact-vae"]
    assert shown["deepcache"][-1] == "50%"
    assert shown["fp16"].count("NaN") == 2


def test_what_did_not_work_is_told_once_with_its_reason(tmp_path: Path) -> None:
    dead = {"name": "onediff", "outcome": "dead", "reason": "it needs torch ≤ 2.5.1", "instead": "torch.compile"}
    entries = [
        {"configuration": name, "outcome": "dead", "reason": dead["reason"], "techniques": [dead]}
        for name in ("onediff", "a-stack")
    ]
    crashed = {
        "configuration": "pab",
        "outcome": "failed",
        "reason": "the process was ended by signal 9",
        "techniques": [],
    }
    result = found(tmp_path, *entries, crashed)
    said = summary(result, "here")
    assert said.winners == ()
    assert [(item.title.en, item.instead) for item in said.others["dead"]] == [("OneDiff", "torch.compile")]
    assert [item.said for item in said.others["failed"]] == ["the process was ended by signal 9"]
    assert any("Nothing could be measured" in warning.en for warning in said.warnings)


def test_a_study_that_is_not_done_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "study.json", [BASELINE, measured("pab", [1.0])], side=8)
    whole = path.read_text()
    cut = whole.replace('"configurations": [', '"configurations": [{"name": "tgate", "techniques": ["tgate"]},')
    path.write_text(cut, encoding="utf-8")
    said = summary(findings(gather([path]).studies), "here")
    assert any("2 of 3 configurations" in warning.en for warning in said.warnings)


@pytest.mark.parametrize("seconds", [[1e-9], [3e5]])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_plot_keeps_everything_within_its_frame(seconds: list[float], count: int, tmp_path: Path) -> None:
    rows = [measured(f"row-{n}", [s * (n + 1) for s in seconds], exact=n * MB) for n in range(count)]
    drawn = plot(found(tmp_path, *rows), "counted", 380, 400)
    assert len(drawn.points) == count
    frame = drawn.frame
    for point in drawn.points:
        assert frame.left <= point.x <= frame.right
        assert frame.top <= point.y <= frame.bottom
    assert all(frame.left <= tick.at <= frame.right for tick in frame.x_ticks)
    assert all(frame.top <= tick.at <= frame.bottom for tick in frame.y_ticks)
