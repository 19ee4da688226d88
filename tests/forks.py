"""Processes of Python that have torch and diffusers already, as forks of one process that has imported them.

Importing these takes seconds of a processor, which each process of a test would take again.  Nothing of hybridge is
imported before the fork.  A test needs :mod:`subprocess` instead if it is about importing, about memory, about
variables that a library reads when it is loaded (OpenMP's, those of the hub's client), or about how an interpreter
ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import IO, Any

#: Of this tree, whatever is installed.
SOURCE = str(Path(__file__).parents[1] / "src")

#: What takes long to import.
_PRELOADED = [
    *("torch", "torch._dynamo", "numpy", "PIL.Image", "diffusers.models.autoencoders.autoencoder_kl"),
    *("diffusers.models.autoencoders.autoencoder_tiny", "safetensors.torch", "httpx", "uvicorn"),
    *("starlette.applications", "pydantic_settings", "typer", "rich.console"),
]

#: Of the fork server: without a home, and so without models that were fetched before.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
_ENVIRONMENT["HOME"] = "/nonexistent"


@cache
def _context() -> ForkServerContext:
    """A fork server of this process, begun in the environment that pytest was begun in."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


class Forked:
    """What :class:`subprocess.Popen` is to other processes: as much of it as tests use.

    Args:
        code: What it runs, as ``python -c`` would.
        arguments: Its ``sys.argv``.
        env: All of its environment; None for a copy of this one's.  PYTHONPATH and PYTHONWARNINGS are heeded.
        cwd: The folder that it runs in.
        stderr: ``subprocess.STDOUT`` to have it in ``stdout``.
    """

    def __init__(
        self,
        code: str,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stderr: int = subprocess.PIPE,
    ) -> None:
        context = _context()
        outputs = [context.Pipe(duplex=False) for _ in range(1 if stderr == subprocess.STDOUT else 2)]
        told = (
            code,
            [str(one) for one in arguments],
            dict(os.environ if env is None else env),
            str(cwd or os.getcwd()),
        )
        with _as_it_was():
            given = (*told, [writing for _, writing in outputs])
            self._process = context.Process(target=_run, args=given, daemon=True)
            self._process.start()
        for _, writing in outputs:
            writing.close()
        files = [_file_of(reading) for reading, _ in outputs]
        self.stdout: IO[str] = files[0]
        self.stderr: IO[str] | None = files[1] if len(files) > 1 else None
        self.pid = self._process.pid
        self.args = ["python", *map(str, arguments)]

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.stdout, self.stderr):
            if file is not None:
                file.close()
        self.wait()

    @property
    def returncode(self) -> int | None:
        """How it ended, as Popen says it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None and self.pid is not None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What is left of its outputs, once it has ended."""
        import threading

        read = ["", ""]

        def reading(number: int, file: IO[str]) -> None:
            read[number] = file.read()
            file.close()

        files = [file for file in (self.stdout, self.stderr) if file is not None and not file.closed]
        threads = [threading.Thread(target=reading, args=(number, file)) for number, file in enumerate(files)]
        for thread in threads:
            thread.start()
        try:
            self.wait(timeout)
        finally:
            if self.returncode is None:
                self.kill()
            for thread in threads:
                thread.join()
        return read[0], read[1]


def run(
    code: str,
    *arguments: object,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float = 240,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """What :func:`subprocess.run` is to other processes."""
    with Forked(code, *arguments, env=env, cwd=cwd) as process:
        said, complained = process.communicate(timeout)
    done = subprocess.CompletedProcess(process.args, process.wait(), said, complained)
    assert not check or done.returncode == 0, done.stderr
    return done


@contextmanager
def _as_it_was() -> Iterator[None]:
    """The environment in which pytest began, for the fork server, which the first fork starts."""
    now = dict(os.environ)
    os.environ.clear()
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(now)


def _file_of(reading: Connection) -> IO[str]:
    descriptor = os.dup(reading.fileno())
    reading.close()
    return open(descriptor, encoding="utf-8")


def _run(code: str, arguments: list[str], env: dict[str, str], cwd: str, outputs: list[Connection]) -> None:
    """In the fork: becomes what ``python -c CODE`` would be there."""
    import warnings

    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number in (1, 2):
        os.dup2(outputs[min(number, len(outputs)) - 1].fileno(), number)
    for output in outputs:
        output.close()
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as it runs
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.argv = ["-c", *arguments]
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in env
    tempfile.tempdir = None
    sys.path[:0] = ["", *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    warnings.resetwarnings()
    warnings.simplefilter(env.get("PYTHONWARNINGS", "ignore").partition(":")[0])  # type: ignore[arg-type]
    main: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(compile(code, "<string>", "exec"), main)  # noqa: S102 - the test's own
    finally:
        sys.stdout.flush()
