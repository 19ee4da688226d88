"""Which records a page takes, and which it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybridge.errors import RequestError
from hybridge.lab.report.sources import gather

from .conftest import VAE

Change = Callable[[dict[str, Any]], object]


def changed(record: Path, folder: Path, change: Change) -> Path:
    whole = json.loads(record.read_text(encoding="utf-8"))
    change(whole)
    path = folder / "changed.json"
    path.write_text(json.dumps(whole), encoding="utf-8")
    return path


def test_a_study_and_a_benchmark_of_the_vae_of_one_machine(record: Path) -> None:
    found = gather([VAE, record])
    assert [source.path for source in found.studies] == [record]
    assert [source.path for source in found.vaes] == [VAE]
    assert found.environment["cpu"] == "AMD EPYC"


def test_another_machine_s_record_is_refused_by_name(record: Path, tmp_path: Path) -> None:
    other = changed(record, tmp_path, lambda whole: whole["environment"].update(cpu="Another", threads=64))
    with pytest.raises(RequestError, match="unlike environment") as refused:
        gather([record, other])
    assert "cpu Another" in str(refused.value)
    assert "threads 64" in str(refused.value)
    assert str(other) in str(refused.value)


def test_a_benchmark_of_another_machine_is_refused_too(record: Path, tmp_path: Path) -> None:
    other = changed(VAE, tmp_path, lambda whole: whole["environment"].update(torch="1.13.0"))
    with pytest.raises(RequestError, match=r"torch 1\.13\.0"):
        gather([record, other])


def test_libraries_that_only_one_kind_of_benchmark_looks_at_are_no_difference(record: Path, tmp_path: Path) -> None:
    other = changed(record, tmp_path, lambda whole: whole["environment"].update(transformers="5.23.0"))
    assert len(gather([other, VAE]).all) == 2
    with pytest.raises(RequestError, match="transformers"):
        gather([other, record])


def test_studies_of_unlike_pictures_are_refused(record: Path, tmp_path: Path) -> None:
    other = changed(record, tmp_path, lambda whole: whole["arguments"].update(size=1024))
    with pytest.raises(RequestError, match="unlike arguments"):
        gather([record, other])


def test_studies_that_tried_other_things_go_together(record: Path, tmp_path: Path) -> None:
    other = changed(record, tmp_path, lambda whole: whole["arguments"].update(configurations=[], runs=9))
    assert len(gather([record, other]).studies) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", '"x"', '{"schema": 1, "benchmark": "study"}'])
def test_what_is_no_record_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match=r"record\.json"):
        gather([path])


DAMAGE: dict[str, Change] = {
    "no measurements": lambda whole: whole.pop("measurements"),
    "an unknown outcome": lambda whole: whole["measurements"][0].update(outcome="splendid"),
    "seconds as text": lambda whole: whole["measurements"][0]["seconds"].update(portrait=["1"]),
    "seconds as a number": lambda whole: whole["measurements"][0].update(seconds=1.0),
    "truth as a count": lambda whole: whole["measurements"][0].update(weights_bytes=True),
    "a technique without a name": lambda whole: whole["measurements"][1]["techniques"][0].pop("name"),
    "prompts without text": lambda whole: whole["arguments"].update(prompts=[{"name": "a", "seed": 1}]),
    "no pipeline": lambda whole: whole.pop("pipeline"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_study_is_refused_with_the_place(name: str, record: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"changed\.json is damaged: saw the record.*Try:"):
        gather([changed(record, tmp_path, DAMAGE[name])])


def test_nothing_is_refused() -> None:
    with pytest.raises(RequestError, match="no record"):
        gather([])
