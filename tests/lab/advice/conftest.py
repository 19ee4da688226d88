"""A tiny pipeline as people have one: loaded from a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import StableDiffusionXLPipeline

from hybridge.lab.tiny import save_tiny, tiny_base


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base and what goes with it on disk, in the hub's layout."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    return folder


@pytest.fixture
def pipe(tiny_folder: Path) -> StableDiffusionXLPipeline:
    """A fresh one."""
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_folder / "base", add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def untouched() -> StableDiffusionXLPipeline:
    """One for all, to be refused."""
    return tiny_base()
