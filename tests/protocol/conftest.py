"""What several of this room's tests need."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

GOLDEN = Path(__file__).parent.parent / "golden"


def read_golden(name: str) -> list[dict[str, Any]]:
    """The lines of a golden file, without the first, which says where they come from."""
    return [json.loads(line) for line in (GOLDEN / name).read_text().splitlines()][1:]


@pytest.fixture(scope="session")
def recorded_lines() -> list[dict[str, Any]]:
    """What was recorded from diffusers, line by line."""
    return read_golden("diffusers.jsonl")


@pytest.fixture(scope="session")
def golden(recorded_lines: list[dict[str, Any]]) -> dict[str, tuple[str, dict[str, str], bytes]]:
    """Case → (query, headers, body), the arguments of ``read_request``."""
    lines = [*recorded_lines, *read_golden("from_specification.jsonl")]
    return {line["name"]: (line["query"], line["headers"], base64.b64decode(line["body"])) for line in lines}


@pytest.fixture(scope="session")
def recorder() -> ModuleType:
    """``tests/golden/record.py``."""
    spec = importlib.util.spec_from_file_location("golden_recorder", GOLDEN / "record.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
