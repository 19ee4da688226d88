"""A study with pictures, and the page that is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import study

from hybridge.lab.report.writing import write

VAE = Path(__file__).parents[3] / "benchmarks" / "records" / "vae-512.json"


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("study"), side=32, runs=3)


@pytest.fixture(scope="session")
def report(record: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report in English, of a study and a benchmark of the VAE."""
    folder = tmp_path_factory.mktemp("report")
    write([record, VAE], folder)
    return folder
