"""Cases small enough for a test."""

from __future__ import annotations

import pytest

from hybridge.lab.vae_bench.cases import Case
from hybridge.models import ModelSpec


@pytest.fixture(scope="session")
def small(specs: dict[str, ModelSpec]) -> str:
    """A small model on disk, as the command line takes it."""
    return f"mine={specs['sd-v1'].source}"


@pytest.fixture(scope="session")
def case(small: str) -> Case:
    """64 pixels, decoded in float32."""
    return Case(small, "decode", 64, "float32", "cpu")
