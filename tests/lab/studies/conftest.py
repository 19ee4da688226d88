"""Studies small enough for a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridge.lab.studies import pipeline
from hybridge.lab.studies.arguments import TINY, Arguments, Prompt, configurations
from hybridge.lab.techniques.pipeline_context import PipelineContext


@pytest.fixture(scope="session")
def arguments() -> Arguments:
    """Two prompts, two runs, two steps, with and without channels last."""
    return Arguments(
        pipeline=TINY,
        prompts=(Prompt("cat", "a cat in the rain", 0), Prompt("bee", "a bee", 2**40)),
        configurations=configurations(["channels-last"]),
        runs=2,
        steps=2,
        guidance_scale=5.0,
        size=64,
        batch=1,
        device="cpu",
        dtype="float32",
        limit_s=300.0,
    )


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny pipeline on disk."""
    return pipeline.located(TINY, tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def context(arguments: Arguments, source: str, tmp_path: Path) -> PipelineContext:
    """A fresh one."""
    return pipeline.context(arguments, source, tmp_path)
