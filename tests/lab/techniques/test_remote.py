"""Parts that a server runs, against a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipelines import bitwise_engine

from hybridge.errors import ClientError
from hybridge.lab.techniques.catalogue import TECHNIQUES
from hybridge.lab.techniques.pipeline_context import PipelineContext
from hybridge.models import CATALOGUE
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running


@pytest.fixture(scope="module")
def tiny_server(tiny_folder: Path) -> Iterator[str]:
    """A server of the tiny pipeline's VAE."""
    spec = replace(CATALOGUE["sdxl"], source=str(tiny_folder / "base"), subfolder="vae")
    with running(create_app(LocalBackend({spec.name: bitwise_engine(spec)}))) as address:
        yield address


def test_the_server_decodes(context: PipelineContext, trial: Callable[..., Any], tiny_server: str) -> None:
    context.server = tiny_server
    with trial(context, "remote-vae") as run:
        proof = run.picture()
        assert proof.took_effect
        assert proof.evidence.startswith("1 decodes elsewhere: vae is sdxl of http://")
        assert np.array_equal(run.after, run.before)


def test_no_server_was_named(context: PipelineContext) -> None:
    missing = TECHNIQUES["remote-vae"].why_missing(context)
    assert missing is not None
    assert missing.outcome == "unavailable"
    assert "hybridge serve" in str(missing.instead)


def test_a_server_that_is_not_there_leaves_the_vae(context: PipelineContext) -> None:
    context.server = "http://127.0.0.1:9"
    before = context.pipe.vae
    with pytest.raises(ClientError):
        TECHNIQUES["remote-vae"].apply(context)
    assert context.pipe.vae is before
