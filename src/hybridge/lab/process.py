"""One process for each measurement: the end that asks, and the end that answers.

The job is one JSON object on stdin, ``{"what": …, …}``.  The answers are JSON lines: ``{"stage": …}`` says what is
being done, so that whoever ends the process for being slow knows where it stood; the last is ``{"done": {…}}``, or
``{"missing": reason}`` where there is nothing to measure.  What libraries print goes to stderr.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import HybridgeError

#: Hears what is being done.
Say = Callable[[str], None]

#: From what is asked to what does it: (the job, what hears the stages) → what was measured.
Jobs = Mapping[str, Callable[[dict[str, Any], Say], dict[str, Any]]]

#: How much the kernel would rather end this process than others, such as the one that keeps the record, when memory
#: is short: the most it can be told.
_FIRST_TO_GO = "1000"

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
        text=True,
        env={**os.environ, **(variables or {})},
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
    lines: list[dict[str, Any]] = [json.loads(line) for line in said.splitlines() if line.endswith("}")]
    last: dict[str, Any] = lines[-1] if lines else {"stage": "starting"}
    if "done" in last:
        done: dict[str, Any] = last["done"]
        return done
    if "missing" in last:
        return {"missing": last["missing"]}
    if is_late:
        return {"missing": f"took longer than {limit_s:g} s: ended while {last['stage']}"}
    return {"missing": f"{_how_it_ended(process.returncode, complained)} while {last['stage']}"}


def answer(jobs: Jobs) -> None:
    """Reads the job, answers, ends: the whole of a process that :func:`ask` starts."""
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


def _end(process: subprocess.Popen[str]) -> None:
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
