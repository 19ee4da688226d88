"""The loop of every benchmark: what is measured, what is told, and what is on the disk after each turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridge.errors import EngineFailure, HybridgeError, RequestError
from hybridge.lab.harness.record import Record
from hybridge.lab.harness.runner import Turn, described, run_benchmark, take_turns


def turn(number: int, measured: list[int], **about: Any) -> Turn:
    def measure() -> dict[str, Any]:
        measured.append(number)
        return {"seconds": [number]}

    return Turn(f"number {number}", {"number": number}, measure, **about)


def test_what_is_there_is_not_measured_again_and_what_is_known_is_not_told(tmp_path: Path) -> None:
    measured: list[int] = []
    heard: list[tuple[int, int, str]] = []
    record: Record = {"measurements": [{"number": 0, "seconds": [9]}]}
    turns = [turn(0, measured), turn(1, measured), turn(2, measured, is_known=True), turn(3, measured)]
    take_turns(record, tmp_path / "record.json", turns, lambda *told: heard.append(told))
    assert measured == [1, 2, 3]
    assert heard == [(0, 2, "number 1"), (1, 2, "number 3"), (2, 2, "done")]
    assert [entry["seconds"] for entry in record["measurements"]] == [[9], [1], [2], [3]]
    assert json.loads((tmp_path / "record.json").read_text()) == record


def test_a_run_that_is_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    measured: list[int] = []
    path = tmp_path / "record.json"

    def stop(_done: int, _total: int, what: str) -> None:
        if what == "number 2":
            raise KeyboardInterrupt

    about: dict[str, Any] = {
        "environment": lambda: {"torch": "2"},
        "turns": lambda _: [turn(1, measured), turn(2, measured)],
        "measurements": [],
    }
    with pytest.raises(KeyboardInterrupt):
        run_benchmark("vae", {"repeats": 1}, path, resume=False, progress=stop, **about)
    with pytest.raises(RequestError, match="there is a record already"):
        run_benchmark("vae", {"repeats": 1}, path, resume=False, progress=stop, **about)
    whole = run_benchmark("vae", {"repeats": 1}, path, resume=True, progress=lambda *_: None, **about)
    assert measured == [1, 2]
    assert [entry["number"] for entry in whole["measurements"]] == [1, 2]
    other = {**about, "environment": lambda: {"torch": "3"}}
    with pytest.raises(RequestError, match="unlike environment"):
        run_benchmark("vae", {"repeats": 1}, path, resume=True, progress=lambda *_: None, **other)


def test_a_full_disk_is_told_with_the_way_on(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.with_name("record.json.unfinished").mkdir()
    with pytest.raises(HybridgeError, match=r"the disk takes no more.*--resume"):
        take_turns({"measurements": []}, path, [turn(1, [])], lambda *_: None)


def test_a_machine_that_cannot_be_described_ends_the_run() -> None:
    assert described({"environment": {}}) == {"environment": {}}
    with pytest.raises(EngineFailure, match=r"nothing can be measured.*no such device"):
        described({"missing": "no such device"})
