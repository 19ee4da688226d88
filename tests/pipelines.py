"""The small pipelines that the examples run on, and the engine whose results are a local VAE's bit for bit."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from hybridge.engine import Engine, EngineOptions
from hybridge.engine.options import DtypeName
from hybridge.models import ModelSpec

EXAMPLES = Path(__file__).parent.parent / "examples"


def bitwise_engine(spec: ModelSpec, dtype: DtypeName = "auto") -> Engine:
    """On the CPU, running diffusers' module as it is."""
    return Engine.load(spec, EngineOptions(device="cpu", dtype=dtype, exactness="bitwise"))


def load_small_pipelines() -> ModuleType:
    """``examples/small_pipelines.py``, which is no package's."""
    name = "small_pipelines"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]
