"""A process that measures one thing of ``hybridge bench`` and ends: ``python -m hybridge.lab.vae_bench.worker``.

See :mod:`..harness.worker_process` for how it is asked; the job is ``{"what": …, "case": {…}, …}``.

A rival's first call is not timed: it loads code and packs weights.  In the round that judges, a second call is
watched for its memory and its picture is compared; then calls are timed, several if they are short.  Where a call
takes minutes, the first is made with a small picture, and the one that is watched is timed as well.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...engine import map_torch_errors, resolve
from ...engine.options import choose_device
from ..harness.environment import environment
from ..harness.measure import growth, seconds
from ..harness.worker_process import Jobs, Say, answer
from . import roofline
from .cases import Case
from .rivals import RIVALS, Limits, all_at_once
from .subject import build, check_plain_fits, distance, forward, reference_dtype, source

#: Calls are timed until they took this long together, so that short ones are timed several times in every process.
_TIMED_S = 0.5
_MOST_CALLS = 20

#: Beside this, what it takes to have memory afresh is nothing.
_LONG_S = 60.0


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
    """See :mod:`.roofline`."""
    case = Case(**job["case"])
    say("measuring convolutions")
    return roofline.measure(case, resolve(case.model))


@torch.inference_mode()
def make_reference(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """The plain module's untiled picture, written to ``job["path"]``."""
    case = Case(**job["case"])
    dtype = reference_dtype(case)
    torch.backends.cudnn.allow_tf32 = False  # ten bits are no float32; this process does nothing else
    check_plain_fits(case, dtype)
    module = all_at_once(build(case, dtype))
    say("running the plain forward")
    device = choose_device(case.device).value
    with map_torch_errors("the plain forward", device):
        picture = forward(module, case, source(case, dtype).to(device))
    save_file({"picture": picture.cpu().contiguous()}, job["path"])
    return {}


@torch.inference_mode()
def measure(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """One rival, once: raw seconds, and where ``job["judges"]`` its peak and its distance from the reference."""
    case, rival = Case(**job["case"]), RIVALS[job["rival"]]
    device = choose_device(case.device).value
    say("getting ready")
    with map_torch_errors(rival.title, device), torch.inference_mode(mode=False), torch.no_grad():
        ready = rival.make(case, Limits(job["budget_bytes"], job["tile_pixels"]))
    measured: dict[str, Any] = dict(ready.about or {})
    with map_torch_errors(rival.title, device):
        say("warming up")
        first = ready.given if ready.first is None else ready.first
        measured["first_call_s"] = seconds(lambda: ready.run(first), device)
        timed: list[float] = []
        if job["judges"]:
            say("measuring memory")
            ready.release()
            begun = time.perf_counter()
            picture, grown = growth(lambda: ready.run(ready.given), device)
            took_s = time.perf_counter() - begun
            timed += [took_s] if took_s >= _LONG_S else []
            # Plans count the input, which was there already.
            measured["peak_bytes"] = None if grown is None else grown + ready.given.nbytes
            if job["reference"] is not None:
                untiled = load_file(job["reference"])["picture"]
                measured["reference"] = str(untiled.dtype).removeprefix("torch.")
                measured |= distance(torch.as_tensor(picture).cpu(), untiled)
                del untiled
            del picture
        say("timing")
        while not timed or (sum(timed) < _TIMED_S and len(timed) < _MOST_CALLS):
            timed.append(seconds(lambda: ready.run(ready.given), device))
    return {"seconds": timed, **measured}


JOBS: Jobs = {
    "describe": describe,
    "roof": measure_roof,
    "reference": make_reference,
    "measure": measure,
}


if __name__ == "__main__":
    answer(JOBS)
