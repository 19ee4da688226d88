"""What the examples share: a server of their own where none is named, and the command line."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hybridge

PHOTOGRAPH = Path(hybridge.__file__).parent / "assets" / "photograph.jpg"

#: The folder of the pipeline that hybridge ships.
STARTER = Path(hybridge.__file__).parent / "assets" / "starter"


def options(description: str, *, real_model: str, output: str) -> argparse.Namespace:
    """``--server``, ``--model``, ``--real`` and ``--output``; ``model`` is filled in."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--server", help="a server's URL or profile; without it, one is started in this process")
    parser.add_argument("--model", help=f"its model; starter, or with --real {real_model}")
    parser.add_argument("--real", action="store_true", help="the models that the text is about, from the hub")
    parser.add_argument("-o", "--output", type=Path, default=Path(output))
    chosen = parser.parse_args()
    chosen.model = chosen.model or (real_model if chosen.real else "starter")
    return chosen


@contextlib.contextmanager
def server(url: str | None, model: str, vae: Any = None) -> Iterator[str]:
    """The URL of a server with the model: the one that was named, or one in a thread of this process.

    The latter serves ``vae`` under the model's name; without one, the model itself.
    """
    if url:
        yield url
        return
    from hybridge.engine import Engine, EngineOptions, resolve
    from hybridge.server.app import create_app
    from hybridge.server.local_backend import LocalBackend
    from hybridge.server.process.server import running

    with tempfile.TemporaryDirectory() as folder:
        if vae is not None:
            vae.save_pretrained(folder)
        engine = Engine.load(resolve(model if vae is None else f"{model}={folder}"), EngineOptions())
        with running(create_app(LocalBackend({model: engine}))) as address:
            yield address
