from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybridge.errors import RequestError
from hybridge.lab.harness import record

ENVIRONMENT = {"torch": "2.13.0", "threads": 2, "instructions": ["avx2"]}
ARGUMENTS = {"sizes": (64, 128), "repeats": 3, "budget_bytes": None}


def fresh(**changed: object) -> record.Record:
    environment = {key: changed.get(key, value) for key, value in ENVIRONMENT.items()}
    arguments = {key: changed.get(key, value) for key, value in ARGUMENTS.items()}
    return record.begin("vae", environment, arguments, measurements=[])


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "record.json"
    written = fresh()
    written["measurements"].append({"seconds": [0.25]})
    record.write(written, path)
    assert record.read(path, "vae") == written
    assert json.loads(path.read_text())["schema"] == record.SCHEMA
    assert [found.name for found in path.parent.iterdir()] == ["record.json"]


def test_records_of_one_environment_and_the_same_arguments_are_alike(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record.write(fresh(), path)
    record.check_alike("environment", record.read(path, "vae"), ENVIRONMENT)
    record.check_alike("arguments", record.read(path, "vae"), ARGUMENTS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"torch": "2.14.0"}, "unlike environment.*torch 2.14.0, expected torch 2.13.0"),
        ({"instructions": ["avx2", "amx_bf16"]}, "unlike environment.*instructions"),
        ({"threads": 1, "torch": "2.14.0"}, "saw threads 1, torch 2.14.0, expected threads 2, torch 2.13.0"),
        ({"repeats": 5}, "unlike arguments.*repeats 5, expected repeats 3"),
        ({"sizes": (64,)}, "unlike arguments.*sizes"),
        ({"budget_bytes": 1}, "unlike arguments.*budget_bytes 1, expected budget_bytes None"),
    ],
)
def test_unlike_records_are_not_put_together(changed: dict[str, object], message: str) -> None:
    part = "environment" if set(changed) <= set(ENVIRONMENT) else "arguments"
    with pytest.raises(RequestError, match=message):
        record.check_alike(part, fresh(), fresh(**changed)[part])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "not a record that can be gone on with"),
        ('{"schema": 1, "benchmark": "vae"}', "saw {'schema': 1"),
        ('{"schema": 2, "benchmark": "round_trip"}', "round_trip"),
    ],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=message):
        record.read(path, "vae")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none\.json cannot be read: saw No such file"):
        record.read(tmp_path / "none.json", "vae")
