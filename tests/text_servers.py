"""A real server in front of the text encoders of small pipelines."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from text_pipelines import CASES, Case

from hybridge.engine import EngineOptions
from hybridge.models import ModelSpec, TextSpec
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.key_file import KeyRing
from hybridge.server.process.server import running
from hybridge.server.settings import Settings


def case_of(name: str) -> Case:
    """The first case of a class, or of a class and a title."""
    return next(case for case in CASES if str(case) == name or case.class_name == name)


def saved(case: Case, folder: Path) -> TextSpec:
    """The pipeline on disk: whole, and its text side alone, which is what the specification means."""
    folder.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers and transformers deprecate what they use themselves
        case.save(folder)
    return TextSpec("tiny", str(folder / "text"), case.class_name)


@contextmanager
def serving(
    texts: Sequence[TextSpec],
    *,
    cold: Sequence[ModelSpec] = (),
    cache_bytes: int = 2**24,
    settings: Settings | None = None,
    keys: KeyRing | None = None,
    **backend: Any,
) -> Iterator[str]:
    """The address of a server with these text encoders, in front of a real socket."""
    options = EngineOptions(device="cpu")
    made = LocalBackend({}, cold=cold, texts=texts, options=options, prompt_cache_bytes=cache_bytes, **backend)
    with running(create_app(made, settings, keys=keys)) as address:
        yield address
