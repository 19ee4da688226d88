"""The tiny pipeline on disk, and a server with a VAE that fits it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hybridge.engine import Engine, EngineOptions
from hybridge.lab.tiny import save_tiny
from hybridge.models import CATALOGUE
from hybridge.server.app import create_app
from hybridge.server.local import LocalBackend
from hybridge.server.running import running


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base, refiner and TAESD, in the hub's layout."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_server(tiny_folder: Path) -> Iterator[str]:
    """A server with the tiny base's VAE, under SDXL's name."""
    spec = replace(CATALOGUE["sdxl-original"], source=str(tiny_folder / "base"), subfolder="vae")
    engine = Engine.load(spec, EngineOptions(device="cpu"))
    with running(create_app(LocalBackend({spec.name: engine}))) as address:
        yield address
