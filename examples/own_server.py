"""What the client examples share: a server of their own where none is named, and the command line."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import hybridge

PHOTOGRAPH = Path(hybridge.__file__).parent / "assets" / "photograph.jpg"


def options(description: str, *, real_model: str, output: str) -> argparse.Namespace:
    """``--server``, ``--model``, ``--real`` and ``--output``; ``model`` is filled in."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--server", help="a server's URL; without it, one is started in this process")
    parser.add_argument("--model", help=f"its model; starter, or with --real {real_model}")
    parser.add_argument("--real", action="store_true", help="the models that the text is about, from the hub")
    parser.add_argument("-o", "--output", type=Path, default=Path(output))
    chosen = parser.parse_args()
    chosen.model = chosen.model or (real_model if chosen.real else "starter")
    return chosen


@contextlib.contextmanager
def server(url: str | None, model: str) -> Iterator[str]:
    """The URL of a server with the model: the one that was named, or one in a thread of this process."""
    if url:
        yield url
        return
    from hybridge.engine import Engine, EngineOptions
    from hybridge.models import look_up
    from hybridge.server.app import create_app
    from hybridge.server.local import LocalBackend
    from hybridge.server.running import running

    engine = Engine.load(look_up(model), EngineOptions())
    with running(create_app(LocalBackend({model: engine}))) as address:
        yield address
