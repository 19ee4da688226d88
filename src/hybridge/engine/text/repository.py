"""A pipeline's folder, or its repository on the hub: what its ``model_index.json`` says, and the files of its text
side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ModelUnavailable
from ...models import TextSide, known_text_sides, text_side_for
from ...models.config_check import shown
from ..hub import download, snapshot
from ..loading import is_path

INDEX = "model_index.json"

#: Those of pipelines have 1 KiB.
_MOST_JSON_BYTES = 2**20

#: Files that a text encoder, a tokenizer or a processor is made of; nothing that is pickled, and no code.
_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.jinja2")


@dataclass(frozen=True, slots=True)
class Repository:
    """A pipeline on this machine.

    Attributes:
        name: What the model is called, for errors.
        folder: Where it is.
        class_name: The pipeline's class.
        side: What is known of its text encoders.
        index: Its ``model_index.json``.
        revision: The commit, for a snapshot of the hub; None for a plain folder.
        identity: Tells these files from others, as they were when they were found: 16 hexadecimal digits.
    """

    name: str
    folder: Path
    class_name: str
    side: TextSide
    index: Mapping[str, Any]
    revision: str | None
    identity: str

    def class_of(self, component: str) -> str | None:
        """The class of a component of transformers; None where the pipeline is saved without it.

        Raises:
            ModelUnavailable: when it is of another library.
        """
        entry = self.index.get(component)
        if entry is None or entry == [None, None]:
            return None
        if isinstance(entry, list) and len(entry) == 2 and entry[0] == "transformers" and isinstance(entry[1], str):
            return entry[1]
        raise ModelUnavailable(
            f"the {component} of {self.name} is nothing that transformers loads",
            saw=shown(entry),
            expected='["transformers", a class]; code that a repository brings along is not run',
            where=self.folder / INDEX,
        )


def is_pipeline(source: str) -> bool:
    """Whether a folder holds a whole pipeline; of the hub, nothing is asked."""
    return (snapshot(Path(source)) / INDEX).is_file()


def open_index(source: str, name: str) -> dict[str, Any]:
    """A pipeline's ``model_index.json``, downloaded if need be; nothing else of it is.

    Raises:
        ModelUnavailable: when it cannot be had.
    """
    return read_object(name, _root(source, name, [INDEX]) / INDEX)


def open_repository(source: str | Path, name: str | None = None, *, is_local: bool = False) -> Repository:
    """The files of a pipeline's text side, downloaded if need be; nothing else of it is.

    Args:
        source: A folder with a ``model_index.json``, or ``owner/name`` on the hub.
        name: What to call it.
        is_local: Whether nothing may be downloaded.

    Raises:
        ModelUnavailable: when it cannot be had, or is a pipeline whose text encoders are not known here.
    """
    name = name or str(source)
    folder = _root(str(source), name, [INDEX], is_local=is_local)
    index = read_object(name, folder / INDEX)
    class_name = index.get("_class_name")
    side = text_side_for(class_name) if isinstance(class_name, str) else None
    if side is None:
        raise ModelUnavailable(
            f"the text encoders of {name} are not known here",
            saw=f"_class_name {shown(class_name)}",
            expected="one of " + ", ".join(row.classes[0] for row in known_text_sides()),
            hint="its VAE can be served all the same, as NAME=SOURCE:vae",
            where=folder / INDEX,
        )
    patterns = [INDEX, *(f"{component}/{pattern}" for component in side.components for pattern in _PATTERNS)]
    patterns += [f"{component}/config.json" for component in side.stand_ins]
    folder = _root(str(source), name, patterns, is_local=is_local)
    revision = folder.name if folder.parent.name == "snapshots" else None
    identity = _identity(folder, index, (*side.components, *side.stand_ins), with_times=revision is None)
    return Repository(name, folder, str(class_name), side, index, revision, identity)


def _identity(folder: Path, index: Mapping[str, Any], components: tuple[str, ...], *, with_times: bool) -> str:
    """Of the names and sizes of all files, and of what the small ones hold; reading all would take minutes."""
    digest = hashlib.sha256(json.dumps(index, sort_keys=True).encode())
    for component in components:
        for path in sorted((folder / component).glob("*")):
            status = path.stat()
            digest.update(f"{component}/{path.name} {status.st_size}\0".encode())
            if status.st_size <= _MOST_JSON_BYTES:
                digest.update(path.read_bytes())
            elif with_times:
                digest.update(str(status.st_mtime_ns).encode())
    return digest.hexdigest()[:16]


def _root(source: str, name: str, patterns: list[str], *, is_local: bool = False) -> Path:
    local = Path(source)
    if local.is_dir():
        folder = snapshot(local)
    elif is_path(source):
        raise ModelUnavailable(
            f"no folder for {name}", expected="a folder of a pipeline, or a repository of the hub", where=source
        )
    else:
        folder = download(name, source, None, patterns, is_local=is_local)
    if not (folder / INDEX).is_file():
        raise ModelUnavailable(
            f"no {INDEX} for {name}",
            expected="a whole pipeline, whose text encoders it names",
            hint="the folder above, if this is a component of a pipeline",
            where=folder,
        )
    return folder


def read_object(name: str, path: Path) -> dict[str, Any]:
    """A small JSON file that holds an object.

    Raises:
        ModelUnavailable: when it does not, or cannot be read.
    """
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ModelUnavailable(f"{path.name} of {name} cannot be read", saw=error.strerror, where=path) from None
    except (ValueError, RecursionError) as error:
        raise ModelUnavailable(f"{path.name} of {name} is not JSON", saw=error, where=path) from None
    if not isinstance(value, dict):
        raise ModelUnavailable(f"{path.name} of {name} holds no object", saw=type(value).__name__, where=path)
    return value
