"""A process that measures one thing and ends: ``python -m hybridge.lab.worker``, a job on stdin, answers on stdout.

The job is one JSON object, ``{"what": …, "case": {…}, …}``.  The answers are JSON lines: ``{"stage": …}`` says what
is being done, so that whoever ends the process for being slow knows where it stood; the last is ``{"done": {…}}``,
or ``{"missing": reason}`` where there is nothing to measure.  What libraries print goes to stderr.

A rival's first call is not timed: it loads code and packs weights.  In the round that judges, a second call is
watched for its memory and its picture is compared; then calls are timed, several if they are short.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..engine import failures_named, resolve
from ..engine.options import choose_device
from ..errors import HybridgeError
from . import roof
from .case import Case
from .environment import environment
from .gauge import growth
from .rivals import RIVALS, Limits
from .roof import seconds
from .served import run_engine
from .subject import build, distance, forward, reference_dtype, source

#: Calls are timed until they took this long together, so that short ones are timed several times in every process.
_TIMED_S = 0.5
_MOST_CALLS = 20

#: How much the kernel would rather end this process than others, such as the one that keeps the record, when memory
#: is short: the most it can be told.
_FIRST_TO_GO = "1000"

#: prctl(2): the signal that this process gets when the one that started it is gone.
_PR_SET_PDEATHSIG = 1

Say = Callable[[str], None]


def describe(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """The environment, and {dtype: {rival: why it cannot take part}}; fails where the device is not there."""
    say("looking at the device")
    cases = {dtype: Case(**case) for dtype, case in job["cases"].items()}
    device = choose_device(next(iter(cases.values())).device).value
    absent = {
        dtype: {name: reason for name in job["rivals"] if (reason := RIVALS[name].why_missing(case))}
        for dtype, case in cases.items()
    }
    return {"environment": environment(device), "absent": absent}


def measure_roof(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """See :mod:`.roof`."""
    case = Case(**job["case"])
    say("measuring convolutions")
    return roof.measure(case, resolve(case.model))


@torch.inference_mode()
def make_reference(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """The plain module's untiled picture, written to ``job["path"]``."""
    case = Case(**job["case"])
    dtype = reference_dtype(case)
    torch.backends.cudnn.allow_tf32 = False  # ten bits are no float32; this process does nothing else
    module = build(case, dtype)
    say("running the plain forward")
    device = choose_device(case.device).value
    with failures_named("the plain forward", device):
        picture = forward(module, case, source(case, dtype).to(device))
    save_file({"picture": picture.cpu().contiguous()}, job["path"])
    return {}


@torch.inference_mode()
def measure(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """One rival, once: raw seconds, and where ``job["judges"]`` its peak and its distance from the reference."""
    case, rival = Case(**job["case"]), RIVALS[job["rival"]]
    device = choose_device(case.device).value
    say("getting ready")
    with failures_named(rival.title, device), torch.inference_mode(mode=False), torch.no_grad():
        ready = rival.make(case, Limits(job["budget_bytes"], job["tile_pixels"]))
    measured: dict[str, Any] = dict(ready.about or {})
    with failures_named(rival.title, device):
        say("warming up")
        measured["first_call_s"] = seconds(lambda: ready.run(ready.given), device)
        if job["judges"]:
            say("measuring memory")
            ready.release()
            picture, grown = growth(lambda: ready.run(ready.given), device)
            # Plans count the input, which was there already.
            measured["peak_bytes"] = None if grown is None else grown + ready.given.nbytes
            if job["reference"] is not None:
                untiled = load_file(job["reference"])["picture"]
                measured["reference"] = str(untiled.dtype).removeprefix("torch.")
                measured |= distance(torch.as_tensor(picture).cpu(), untiled)
                del untiled
            del picture
        say("timing")
        timed: list[float] = []
        while not timed or (sum(timed) < _TIMED_S and len(timed) < _MOST_CALLS):
            timed.append(seconds(lambda: ready.run(ready.given), device))
    return {"seconds": timed, **measured}


JOBS: dict[str, Callable[[dict[str, Any], Say], dict[str, Any]]] = {
    "describe": describe,
    "roof": measure_roof,
    "reference": make_reference,
    "measure": measure,
    "engine": run_engine,
}


def main() -> None:
    """Reads the job, answers, ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _end_with_the_asker()
    _stand_in_front()

    def answer(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    try:
        job = json.load(sys.stdin)
        done = JOBS[job["what"]](job, lambda stage: answer({"stage": stage}))
        answer({"done": done})
    except HybridgeError as error:  # its hint is for callers of the engine, not for readers of a table
        answer({"missing": str(HybridgeError(error.what, saw=error.saw, expected=error.expected))})
    except Exception as error:  # a rival may raise anything, and that is a row of the table
        lines = str(error).strip().splitlines()
        answer({"missing": f"{type(error).__name__}: {lines[0] if lines else ''}"})


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


if __name__ == "__main__":
    main()
