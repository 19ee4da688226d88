"""One process for each measurement: the end that asks, and the end that answers.

``multiprocessing`` with its ``forkserver`` would not do: a job needs a process group of its own, so that what
torch.compile starts ends with it; its output in files, so that a killed one can still be read; and environment
variables of its own.  ``forkserver`` has none of the three.

The job is one JSON object on stdin, ``{"what": …, …}``.  The answers are JSON lines: ``{"stage": …}`` says what is
being done, so that whoever ends the process for being slow knows where it stood; the last is ``{"done": {…}}``, or
``{"missing": reason}`` where there is nothing to measure.  What libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import HybridgeError

#: Hears what is being done.
Say = Callable[[str], None]

#: From what is asked to what does it: (the job, what hears the stages) → what was measured.
Jobs = Mapping[str, Callable[[dict[str, Any], Say], dict[str, Any]]]

#: How much the kernel would rather end this process than others, such as the one that keeps the record, when memory
#: is short: the most it can be told.
_FIRST_TO_GO = "1000"

#: Given to a worker that is to be a :class:`ForkServer`'s.
_FORK_SERVER = "--fork-server"

#: What processes say is read as UTF-8, whatever the terminal of this one shows.
_UTF8 = {"PYTHONIOENCODING": "utf-8"}

#: prctl(2): the signal that this process gets when the one that started it is gone.
_PR_SET_PDEATHSIG = 1


def ask(
    module: str, job: dict[str, Any], *, limit_s: float | None = None, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a fresh process answered: what it measured, or ``{"missing": reason}``.

    Args:
        module: What ``python -m`` runs; it calls :func:`answer`.
        job: What it is asked.
        limit_s: Seconds that it may take, or None.
        variables: Of its environment, above this one's.
    """
    process = subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **_UTF8, **(variables or {})},
        start_new_session=True,  # so that the processes that torch.compile starts end with it
    )
    try:
        said, complained = process.communicate(json.dumps({**job, "asker": os.getpid()}), timeout=limit_s)
        is_late = False
    except subprocess.TimeoutExpired:
        _end(process)
        said, complained = process.communicate()
        is_late = True
    finally:
        if process.returncode is None:  # Ctrl-C, say
            _end(process)
    return _answered(said, complained, process.returncode, limit_s if is_late else None)


class ForkServer:
    """A process that has loaded a module and its libraries, and makes a fresh one for each job by forking.

    Loading takes seconds, which jobs of seconds would pay each time.  What a job leaves behind still goes with its
    process.  For jobs on the CPU alone: what a GPU's driver has begun does not live on in a fork.

    It is started by the first job, and anew by the first after it has ended: a kernel that is short of memory may
    choose it rather than its fork.

    Args:
        module: What ``python -m`` runs; it calls :func:`answer`.
        folder: For the files through which it talks; there when a job is asked for.
        variables: Of its environment, above this one's.
    """

    def __init__(self, module: str, folder: Path, variables: Mapping[str, str]) -> None:
        self._module = module
        self._folder = folder
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None

    def ask(
        self, job: dict[str, Any], *, limit_s: float | None = None, variables: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Does what :func:`ask` does, in a fork."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = self._started()
        files = {name: self._folder / name for name in ("job", "said", "complained")}
        files["job"].write_text(json.dumps({**job, "asker": self._process.pid}), encoding="utf-8")
        order = {**{name: str(path) for name, path in files.items()}, "variables": dict(variables or {})}
        channel = _ForkChannel(self._process)
        try:
            channel.send(order)
            child = channel.read_number(None)
            assert child is not None  # noqa: S101 - without a limit there is a number
            status = _status_of(child, channel, limit_s)
            is_late = status is None
            if is_late:
                status = channel.read_number(None)
        except (OSError, EOFError):
            how = _how_it_ended(self._process.wait(), "").rstrip(",")
            return {"missing": f"the process that had loaded the libraries has ended: {how}"}
        said, complained = (
            files[name].read_text(encoding="utf-8", errors="replace") for name in files if name != "job"
        )
        return _answered(said, complained, status or 0, limit_s if is_late else None)

    def close(self) -> None:
        """Ends it."""
        if self._process is None:
            return
        if self._process.poll() is None:
            _end(self._process)
        self._process.communicate()
        self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-m", self._module, _FORK_SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_UTF8, **self._variables},
            start_new_session=True,
        )


class _ForkChannel:
    """To a fork server for one job: orders go down, numbers come back."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None  # noqa: S101 - it has pipes
        assert process.stdout is not None  # noqa: S101 - it has pipes
        # Read and written without buffers: what lies in one is not seen by select.
        self._orders, self._numbers = process.stdin.fileno(), process.stdout.fileno()
        self._received = b""

    def send(self, order: dict[str, Any]) -> None:
        """Raises OSError when nobody reads it."""
        os.write(self._orders, json.dumps(order).encode() + b"\n")

    def read_number(self, limit_s: float | None) -> int | None:
        """The number in the next line; None when that takes too long.

        Raises:
            EOFError: when there will be none.
        """
        until = None if limit_s is None else time.monotonic() + limit_s
        while b"\n" not in self._received:
            left_s = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self._numbers], [], [], left_s)[0]:
                return None
            more = os.read(self._numbers, 4096)
            if not more:
                raise EOFError
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return int(line)


def _status_of(child: int, channel: _ForkChannel, limit_s: float | None) -> int | None:
    """How it ended; None when it was ended for taking too long."""
    status = None
    try:
        status = channel.read_number(limit_s)
    finally:
        if status is None:  # too long, or Ctrl-C, or without the fork server
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
    return status


def _answered(said: str, complained: str, status: int, limit_s: float | None) -> dict[str, Any]:
    """What a process answered; ``limit_s`` is given for one that was ended for taking longer."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in said.splitlines() if line.endswith("}")]
    last: dict[str, Any] = lines[-1] if lines else {"stage": "starting"}
    if "done" in last:
        done: dict[str, Any] = last["done"]
        return done
    if "missing" in last:
        return {"missing": last["missing"]}
    if limit_s is not None:
        return {"missing": f"took longer than {limit_s:g} s: ended while {last['stage']}"}
    return {"missing": f"{_how_it_ended(status, complained)} while {last['stage']}"}


def answer(jobs: Jobs) -> None:
    """Reads the job, answers, ends: the whole of a process that :func:`ask` starts; or of a :class:`ForkServer`."""
    if _FORK_SERVER in sys.argv:
        _serve_forks(jobs)
    else:
        _answer(jobs)


def _serve_forks(jobs: Jobs) -> None:
    """Forks for every order on stdin; says the process's number, and how it ended."""
    _end_with_the_asker()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()  # so that the processes that torch.compile starts end with it
            os.environ.update(order["variables"])
            for number, name in enumerate(("job", "said", "complained")):
                os.dup2(os.open(order[name], os.O_RDWR | os.O_CREAT | (os.O_TRUNC if number else 0)), number)
            sys.stdin = os.fdopen(0, encoding="utf-8")
            status = 1
            try:
                _answer(jobs)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)  # noqa: T201 - the other end of the pipe reads it
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201 - the same


def _answer(jobs: Jobs) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _end_with_the_asker()
    _stand_in_front()

    def write(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    try:
        job = json.load(sys.stdin)
        if job.pop("asker") != os.getppid():
            return  # it was gone before this process could hear of it: libraries take seconds to load
        done = jobs[job["what"]](job, lambda stage: write({"stage": stage}))
        write({"done": done})
    except HybridgeError as error:  # its hint is for callers of the engine, not for readers of a table
        write({"missing": str(HybridgeError(error.what, saw=error.saw, expected=error.expected))})
    except Exception as error:  # whoever is measured may raise anything, and that is a row of the table
        write({"missing": in_a_line(error)})


def in_a_line(error: BaseException) -> str:
    """An error's class and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _how_it_ended(status: int, complained: str) -> str:
    if status == -signal.SIGKILL:
        return "killed, most likely for want of memory,"
    line = complained.strip().rpartition("\n")[2]
    return f"ended with status {status} ({line})" if line else f"ended with status {status}"


def _end(process: subprocess.Popen[Any]) -> None:
    """Ends a process that was not waited for yet, and whatever it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _end_with_the_asker() -> None:
    """An asker that is killed cannot end this process, which would go on holding the device."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stand_in_front() -> None:
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        try:
            score.write_text(_FIRST_TO_GO, encoding="ascii")
        except OSError:
            return  # some sandboxes forbid it; the run is then as safe as any other process
