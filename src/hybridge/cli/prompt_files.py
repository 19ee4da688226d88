"""A folder of embeddings: the file of each prompt, and the files that exist already.

A file's name depends on everything that affects its contents, so that a folder never mixes models, precisions or
options.  ``prompts.jsonl`` lists the file of each prompt.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import HybridgeError, RequestError
from ..protocol import PromptAnswer, write_prompt_answer
from .prompt_encoders import PromptEncoder


def read_prompts(path: Path, *, empty: bool) -> list[str]:
    """Return the lines of a file without duplicates and line ends, after the empty prompt if ``empty``.

    Raises:
        RequestError: for a file that is not UTF-8, or contains no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not at other characters that separate lines
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path} is not UTF-8", saw=f"the byte {error.object[error.start]:#04x} at {error.start}"
        ) from None
    found = dict.fromkeys(line.strip() for line in lines)
    found.pop("", None)
    if not found:
        raise RequestError(f"{path} holds no prompt", expected="one a line")
    return [*([""] if empty else []), *found]


def read_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse ``NAME=VALUE`` arguments; a value that is not JSON is text.

    Raises:
        RequestError: for any other form, and for a duplicate name.
    """
    options: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or not name or name == "prompt" or name in options:
            raise RequestError(
                "an option has another form", saw=repr(argument), expected="NAME=VALUE, each NAME once"
            )
        try:
            options[name] = json.loads(text)
        except (ValueError, RecursionError):
            options[name] = text
    return options


class Folder:
    """The files of one model and one set of options.

    Args:
        path: The folder; it is created if it does not exist.
        encoder: Encodes the prompts.
        options: The options of every request.

    Attributes:
        found: Number of prompts whose files existed before.
    """

    def __init__(self, path: Path, encoder: PromptEncoder, options: dict[str, Any]) -> None:
        self._path, self._encoder, self._options = path, encoder, options
        self._about: dict[str, str] = {}  # how the embeddings were made
        self.found = 0

    def file_of(self, prompt: str) -> Path:
        """Return the path of a prompt's embeddings."""
        said = json.dumps([self._encoder.model, self._about, self._options, prompt], sort_keys=True)
        return self._path / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.safetensors"

    def begin(self, prompts: Sequence[str]) -> list[str]:
        """Write ``prompts.jsonl``, and return the prompts whose files are missing.

        The first prompt is always encoded, because only an answer says how embeddings are made.

        Raises:
            HybridgeError: when it cannot be encoded.
        """
        self._path.mkdir(parents=True, exist_ok=True)
        first = self._encode(prompts[0])
        self._about = {name: value for name, value in first.metadata.items() if name != "prompt"}
        self.found = sum(self.file_of(prompt).exists() for prompt in prompts)
        _write(self.file_of(prompts[0]), write_prompt_answer(first))
        lines = [
            json.dumps({"prompt": prompt, "file": self.file_of(prompt).name}, ensure_ascii=False)
            for prompt in prompts
        ]
        _write(self._path / "prompts.jsonl", "".join(f"{line}\n" for line in lines).encode())
        return [prompt for prompt in prompts if not self.file_of(prompt).exists()]

    def fill(
        self, prompts: Sequence[str], jobs: int, advance: Callable[[], object]
    ) -> list[tuple[str, HybridgeError]]:
        """Create the files of prompts, and return the refused prompts with the errors.

        Raises:
            HybridgeError: for errors that do not concern one prompt; files written before are kept.
        """
        refused: list[tuple[str, HybridgeError]] = []
        ahead = iter(prompts)
        with ThreadPoolExecutor(jobs, thread_name_prefix="hybridge-prompts") as pool:
            running: dict[Future[None], str] = {}
            while True:
                for prompt in ahead:
                    running[pool.submit(self._make, prompt)] = prompt
                    if len(running) >= 2 * jobs:
                        break
                if not running:
                    return refused
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    prompt = running.pop(done)
                    error = done.exception()
                    if error is None or self._encoder.is_about_the_prompt(error):
                        advance()
                        if isinstance(error, HybridgeError):
                            refused.append((prompt, error))
                        continue
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise error

    def _make(self, prompt: str) -> None:
        _write(self.file_of(prompt), write_prompt_answer(self._encode(prompt)))

    def _encode(self, prompt: str) -> PromptAnswer:
        made = self._encoder.encode(prompt, self._options)
        return replace(made, metadata={**made.metadata, "prompt": prompt})


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically: after an interruption it is complete or missing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
