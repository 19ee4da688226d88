"""The tiny pipeline as people have one, loaded from a folder, and a server with a VAE that fits it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import StableDiffusionXLPipeline

from hybridge.engine import Engine, EngineOptions
from hybridge.lab.tiny import save_tiny, tiny_base
from hybridge.models import CATALOGUE
from hybridge.server.app import create_app
from hybridge.server.local import LocalBackend
from hybridge.server.running import running


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


@pytest.fixture(scope="session")
def tiny_server(tiny_folder: Path) -> Iterator[str]:
    """A server with the tiny base's VAE, under SDXL's name."""
    spec = replace(CATALOGUE["sdxl-original"], source=str(tiny_folder / "base"), subfolder="vae")
    engine = Engine.load(spec, EngineOptions(device="cpu"))
    with running(create_app(LocalBackend({spec.name: engine}))) as address:
        yield address
