"""The LoRAs that a server offers: the safetensors files of one folder, by name.

A request names one of them.  No path of a request is ever opened: a name is looked up among the files that are
there.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from ..engine.text.lora import Lora, numbers_of
from ..errors import RequestError
from .scheduling.prompt_job import LoraChoice

_SUFFIX = ".safetensors"

#: Names in an error.
_MOST_SHOWN = 20


class LoraFolder:
    """The files of a folder, looked up when they are asked for.

    Args:
        folder: Where they are; None offers none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._numbers: dict[str, tuple[str, int]] = {}  # by name: the identity of a file, and its numbers

    def names(self) -> list[str]:
        """What may be asked for, in order."""
        return sorted(self._files())

    def find(self, choice: LoraChoice) -> Lora:
        """The file of a name.

        Raises:
            RequestError: when there is none of that name; lists those that there are.
            ModelUnavailable: when it is damaged.
        """
        if self._folder is None:
            raise RequestError("this server has no LoRAs", hint="a server with --lora-dir")
        files = self._files()
        path = files.get(choice.name)
        try:
            about = None if path is None else path.stat()
        except OSError:  # deleted since it was found
            about = None
        if path is None or about is None:
            names = sorted(files)
            near = difflib.get_close_matches(choice.name, names, n=1)
            more = ", …" if len(names) > _MOST_SHOWN else ""
            raise RequestError(
                f"no LoRA {choice.name[:60]!r} on this server",
                expected="one of " + ", ".join(names[:_MOST_SHOWN]) + more if names else "none, for there are none",
                hint=near[0] if near else None,
            )
        identity = f"{about.st_size} {about.st_mtime_ns}"
        known, numbers = self._numbers.get(choice.name, ("", 0))
        if known != identity:
            numbers = numbers_of(choice.name, path)
            self._numbers[choice.name] = (identity, numbers)
        return Lora(choice.name, path, identity, numbers, about.st_size, choice.scale)

    def _files(self) -> dict[str, Path]:
        if self._folder is None or not self._folder.is_dir():
            return {}
        found = {path.stem: path for path in self._folder.glob(f"*{_SUFFIX}") if path.is_file()}
        return {name: path for name, path in found.items() if _is_text(name)}


def _is_text(name: str) -> bool:
    """Whether JSON can hold a name: file systems also have names that are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
