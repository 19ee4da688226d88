"""Mode ``spill``: activations outside of the memory that a plan bounds."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_kl, small_tiny
from torch.utils._python_dispatch import _disable_current_modes

import hybridge
from hybridge.engine.execution import buffers
from hybridge.engine.execution import executor as execution
from hybridge.engine.execution.executor import Executor
from hybridge.engine.execution.transfer import Copies
from hybridge.engine.memory.offload import Offloaded
from hybridge.engine.planning.conv_algorithms import DeviceProfile
from hybridge.engine.planning.footprint import Footprint
from hybridge.engine.planning.plan import IN_MEMORY, WITHIN_ROUNDING, Plan, plan
from hybridge.engine.planning.shape import Shape
from hybridge.engine.program.lowering import lower
from hybridge.errors import OutOfMemory, RequestError, Stopped, TooLarge
from hybridge.lab.harness.memory import PeakBytes

STRIP = 2**13


def tight(module: Any, task: str, source: torch.Tensor, arithmetic: DeviceProfile) -> Plan:
    """The plan of the smallest budget, which parks all that can be parked."""
    batch, _, height, width = source.shape
    options: dict[str, Any] = {"batch": batch, "height": height, "width": width, "arithmetic": arithmetic}
    with pytest.raises(TooLarge) as refused:
        plan(lower(module, task), budget_bytes=1, modes=("strips", "lean", "spill"), **options)
    least = refused.value.least_bytes
    return plan(lower(module, task), budget_bytes=least, modes=("strips", "lean", "spill"), **options)


def source_for(task: str) -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    return torch.randn(2, *((4, 7, 5) if task == "decode" else (3, 59, 43)), generator=noise).clamp(-1, 1)


#: Every arithmetic with both modules and both tasks, and every module with both tasks; not all of the product.
CASES = {
    "direct": (torch.float32, 4, None, [(small_kl, "decode"), (small_tiny, "encode")]),
    "transformed": (torch.float32, 4, 1, [(small_kl, "encode"), (small_tiny, "decode")]),
    "bfloat16 widened": (torch.bfloat16, 4, 1, [(small_kl, "decode"), (small_tiny, "encode")]),
    "bfloat16": (torch.bfloat16, 2, None, [(small_kl, "encode"), (small_tiny, "decode")]),
}


class Late(Copies):
    """As late as a GPU's copies may be: who does not wait for one finds what was there before."""

    def __init__(self) -> None:
        self.begun = self.done = 0
        self._waiting: deque[tuple[torch.Tensor, torch.Tensor]] = deque()

    def begin(self, source: torch.Tensor, target: torch.Tensor) -> int:
        self._waiting.append((source, target))
        self.begun += 1
        return self.begun

    def wait(self, copy: int) -> None:
        while self.done < copy:
            source, target = self._waiting.popleft()
            target.copy_(source)
            self.done += 1

    def finish(self) -> None:
        self.wait(self.begun)


@pytest.mark.parametrize(
    ("dtype", "computed_bytes", "transform_from", "make", "task"),
    [
        pytest.param(dtype, computed_bytes, transform_from, make, task, id=f"{name}-{make.__name__}-{task}")
        for name, (dtype, computed_bytes, transform_from, made) in CASES.items()
        for make, task in made
    ],
)
@pytest.mark.parametrize("is_copied", [False, True], ids=["in place", "copied"])
@torch.no_grad()
def test_parking_changes_no_bit_and_takes_no_memory(
    make, task, dtype, computed_bytes, transform_from, is_copied, monkeypatch
) -> None:
    module = torch.nn.Module.to(make(4), dtype)
    source = source_for(task).to(dtype)
    arithmetic = DeviceProfile(dtype.itemsize, computed_bytes, STRIP, transform_from)
    chosen = tight(module, task, source, arithmetic)
    assert chosen.mode == "spill"
    assert chosen.parked_bytes > 0
    executor = Executor(chosen_for := lower(module, task), module)
    level = Footprint(Shape(chosen_for, 2, *source.shape[2:], arithmetic), _streamed(chosen))
    in_memory = Plan(
        "lean", 2, *source.shape[2:], arithmetic, chosen.steps, level.buffers, level.last_reads, 0, 0, 0, ""
    )
    expected = executor.run(source, in_memory)
    late = Late()
    if is_copied:
        monkeypatch.setattr(execution, "copies_for", lambda _: late)
    gc.collect()
    with PeakBytes([module]) as live:
        live.count(source)

        class OutOfSight(Offloaded):
            def __init__(self, *arguments: Any) -> None:
                with _disable_current_modes():
                    super().__init__(*arguments)
                live.leave_out(self.tensor)

        monkeypatch.setattr(buffers, "Offloaded", OutOfSight)
        made = executor.run(source, chosen)
    assert torch.equal(made, expected)
    assert live.peak_bytes <= 1.1 * chosen.peak_bytes + 10_000
    assert late.done == late.begun
    assert late.begun > 2 * len(chosen.steps) or not is_copied


@torch.no_grad()
def test_a_run_that_is_stopped_leaves_no_copy_behind(monkeypatch) -> None:
    module, source = small_kl(4), source_for("decode")
    chosen = tight(module, "decode", source, DeviceProfile(4, 4, STRIP))
    late = Late()
    monkeypatch.setattr(execution, "copies_for", lambda _: late)
    with pytest.raises(Stopped):
        Executor(lower(module, "decode"), module).run(
            source, chosen, should_stop=lambda: late.begun > late.done + 1
        )
    assert late.done == late.begun > 0


def _streamed(chosen: Plan) -> frozenset[int]:
    return frozenset(index + 1 for index, step in enumerate(chosen.steps) if step.is_streamed)


@pytest.mark.gpu
@torch.no_grad()
def test_a_gpu_parks_in_its_host() -> None:
    module = small_kl(4).cuda()
    source = source_for("decode").cuda()
    chosen = tight(module, "decode", source, DeviceProfile(4, 4))
    assert chosen.mode == "spill"
    made = Executor(lower(module, "decode"), module).run(source, chosen)
    expected = module.decode(source).sample
    assert (made - expected).norm() < 1e-4 * expected.norm()


_PROCESS = """
import resource, sys, torch, hybridge
from diffusers import AutoencoderKL
torch.manual_seed(0)
vae = AutoencoderKL(block_out_channels=[32, 32], down_block_types=["DownEncoderBlock2D"] * 2, norm_num_groups=8,
                    up_block_types=["UpDecoderBlock2D"] * 2, mid_block_add_attention=False)
vae.eval().requires_grad_(False)
latents = torch.randn(1, 4, 256, 256)
exact = hybridge.exact(vae, budget=sys.argv[1], spill=sys.argv[2])
exact.decode(latents[..., :64, :64])  # what is loaded and made once
plan = exact.plan("decode", 1, 256, 256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
exact.decode(latents)
grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(plan.mode, plan.peak_bytes, plan.parked_bytes, grown)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss and madvise are Linux's")
def test_the_process_stays_within_the_budget(tmp_path) -> None:
    """By the system's own count of its pages, those of the file among them."""
    command = [sys.executable, "-c", _PROCESS, "40MiB", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == "spill"
    peak_bytes, parked_bytes, grown_bytes = map(int, said[1:])
    assert parked_bytes >= 64 * 2**20
    assert grown_bytes <= 1.1 * peak_bytes + 8 * 2**20
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def hungry() -> tuple[Any, torch.Tensor]:
    """A VAE, and latents whose picture fits ``BUDGET`` only if activations are parked."""
    return small_kl(4).requires_grad_(False), torch.randn(1, 4, 64, 64)


BUDGET = "6MiB"


def test_it_is_the_last_exact_way(hungry) -> None:
    vae, latents = hungry
    assert set(WITHIN_ROUNDING) - set(IN_MEMORY) == {"spill"}
    assert hybridge.exact(vae, "32MiB").plan("decode", 1, 64, 64).mode not in ("spill", "tiles")
    chosen = hybridge.exact(vae, BUDGET).plan("decode", 1, 64, 64)
    assert chosen.mode == "spill"
    assert "of activations offloaded" in chosen.reason
    with pytest.raises(TooLarge):
        hybridge.exact(vae, BUDGET, spill=False).decode(latents)


def test_the_file_is_in_the_folder_and_has_no_name(hungry, tmp_path, monkeypatch) -> None:
    vae, latents = hungry
    opened, make = [], tempfile.TemporaryFile

    def made_there(**options: Any) -> Any:
        opened.append(options["dir"])
        return make(**options)

    monkeypatch.setattr(tempfile, "TemporaryFile", made_there)
    expected = vae.decode(latents).sample
    made = hybridge.exact(vae, BUDGET, spill=tmp_path).decode(latents).sample
    assert (made - expected).norm() < 1e-5 * expected.norm()
    assert opened
    assert set(opened) == {tmp_path}
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("missing", [True, False])
def test_a_folder_that_cannot_be_written_to_is_refused_at_once(missing, tmp_path) -> None:
    path = tmp_path / "none" if missing else tmp_path / "file"
    if not missing:
        path.write_text("")
    with pytest.raises(RequestError, match="cannot spill there"):
        hybridge.exact(small_kl(4), "1GiB", spill=path)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room is taken in another way here")
def test_a_full_disk_is_said_and_leaves_nothing(hungry, tmp_path, monkeypatch) -> None:
    vae, latents = hungry

    def no_room(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hybridge.engine.memory.offload.os.posix_fallocate", no_room)
    with pytest.raises(OutOfMemory, match="No space left on device") as refused:
        hybridge.exact(vae, BUDGET, spill=tmp_path).decode(latents)
    assert "no room to offload" in str(refused.value)
    assert not [*tmp_path.iterdir()]


def test_where_no_room_can_be_taken_beforehand_it_is_asked_for(hungry, tmp_path, monkeypatch) -> None:
    """macOS and Windows have no ``posix_fallocate``."""
    vae, latents = hungry
    monkeypatch.delattr("hybridge.engine.memory.offload.os.posix_fallocate", raising=False)
    assert hybridge.exact(vae, BUDGET, spill=Path(tmp_path)).decode(latents).sample.shape == (1, 3, 512, 512)
    monkeypatch.setattr(
        "hybridge.engine.memory.offload.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})()
    )
    with pytest.raises(OutOfMemory, match="No space left"):
        hybridge.exact(vae, BUDGET, spill=tmp_path).decode(latents)
