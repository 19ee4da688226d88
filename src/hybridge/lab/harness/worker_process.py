"""One process for each measurement: the end that asks, and the end that answers.

``multiprocessing`` with its ``forkserver`` would not do: it has one server for a whole program, with the variables
of its environment, and it does not say how a server ended.

The job is one JSON object on stdin, ``{"what": …, …}``.  The answers are JSON lines: ``{"stage": …}`` says what is
being done, so that whoever ends the process for being slow knows where it stood; the last is ``{"done": {…}}``, or
``{"missing": reason}`` where there is nothing to measure.  What libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from ...errors import HybridgeError

#: Hears what is being done.
Say = Callable[[str], None]

#: From what is asked to what does it: (the job, what hears the stages) → what was measured.
Jobs = Mapping[str, Callable[[dict[str, Any], Say], dict[str, Any]]]

#: How much the kernel would rather end this process than others, such as the one that keeps the record, when memory
#: is short: the most it can be told.
_FIRST_TO_GO = "1000"

#: Given to a worker that is to be a :class:`ForkServer`'s, with the descriptor of its end of the connection.
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
        _end(process)  # after Ctrl-C, say
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
        self._running: tuple[subprocess.Popen[bytes], Connection[Any, Any]] | None = None

    def ask(
        self, job: dict[str, Any], *, limit_s: float | None = None, variables: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Does what :func:`ask` does, in a fork."""
        if self._running is None or self._running[0].poll() is not None:
            self.close()
            self._running = self._started()
        process, channel = self._running
        files = {name: str(self._folder / name) for name in ("job", "said", "complained")}
        Path(files["job"]).write_text(json.dumps({**job, "asker": process.pid}), encoding="utf-8")
        try:
            channel.send({**files, "variables": dict(variables or {})})
            child = channel.recv()
            status: Any = None
            try:
                is_late = not channel.poll(limit_s)
                status = None if is_late else channel.recv()
            finally:
                if status is None:  # too long, or Ctrl-C, or without the fork server
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child, signal.SIGKILL)
            if is_late:
                status = channel.recv()
        except (OSError, EOFError):
            how = _how_it_ended(process.wait(), "").rstrip(",")
            return {"missing": f"the process that had loaded the libraries has ended: {how}"}
        said, complained = (
            Path(files[name]).read_text(encoding="utf-8", errors="replace") for name in ("said", "complained")
        )
        return _answered(said, complained, status, limit_s if is_late else None)

    def close(self) -> None:
        """Ends it."""
        if self._running is not None:
            process, channel = self._running
            channel.close()
            _end(process)
            process.wait()
            self._running = None

    def _started(self) -> tuple[subprocess.Popen[bytes], Connection[Any, Any]]:
        ours, theirs = Pipe()
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-m", self._module, _FORK_SERVER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **_UTF8, **self._variables},
                start_new_session=True,
            )
        return process, ours


def _answered(said: str, complained: str, status: int, limit_s: float | None) -> dict[str, Any]:
    """What a process answered; ``limit_s`` is given for one that was ended for taking longer."""
    lines = [line for line in said.splitlines() if line.endswith("}")]
    last: dict[str, Any] = json.loads(lines[-1]) if lines else {"stage": "starting"}
    if "done" in last:
        return dict(last["done"])
    if "missing" in last:
        return {"missing": last["missing"]}
    if limit_s is not None:
        return {"missing": f"took longer than {limit_s:g} s: ended while {last['stage']}"}
    return {"missing": f"{_how_it_ended(status, complained)} while {last['stage']}"}


def answer(jobs: Jobs) -> None:
    """Reads the job, answers, ends: the whole of a process that :func:`ask` starts; or of a :class:`ForkServer`."""
    if _FORK_SERVER in sys.argv:
        _serve_forks(jobs, Connection(int(sys.argv[-1])))
    else:
        _answer(jobs)


def _serve_forks(jobs: Jobs, asker: Connection[Any, Any]) -> None:
    """Forks for every order; says the process's number, and how it ended."""
    _end_with_the_asker()
    with contextlib.suppress(EOFError):
        while True:
            order = asker.recv()
            child = os.fork()
            if child == 0:
                asker.close()
                _answer_in_fork(jobs, order)
            asker.send(child)
            asker.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _answer_in_fork(jobs: Jobs, order: dict[str, Any]) -> NoReturn:
    status = 1
    try:
        os.setsid()  # so that the processes that torch.compile starts end with it
        os.environ.update(order["variables"])
        for number, name in enumerate(("job", "said", "complained")):
            os.dup2(os.open(order[name], os.O_RDWR | os.O_CREAT | (os.O_TRUNC if number else 0)), number)
        sys.stdin = os.fdopen(0, encoding="utf-8")
        _answer(jobs)
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


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
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _end_with_the_asker() -> None:
    """An asker that is killed cannot end this process, which would go on holding the device."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stand_in_front() -> None:
    # Other systems have no such file, some sandboxes forbid it; the run is then as safe as any other process.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO, encoding="ascii")
