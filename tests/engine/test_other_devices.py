"""What runs on a GPU, as far as that shows without one: its plan, its devices, and its operators' side effects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import small_kl, small_tiny
from torch.utils._python_dispatch import TorchDispatchMode

import hybridge
from hybridge.engine import runner
from hybridge.engine.device_profile import device_profile_for
from hybridge.engine.execution.executor import Executor
from hybridge.engine.memory import device_memory
from hybridge.engine.memory.device_memory import free_bytes
from hybridge.engine.planning.plan import Mode, Plan, plan
from hybridge.engine.program.lowering import lower
from hybridge.engine.program.program import Task
from hybridge.errors import TooLarge

MODES: list[Mode] = ["strips", "recompute"]


def planned(module: Any, task: Task, source: torch.Tensor, device_type: str, mode: Mode) -> Plan:
    """As large strips as a device likes best; where values are made again, the smallest ones."""
    batch, _, height, width = source.shape
    about = {"batch": batch, "height": height, "width": width, "modes": (mode,)}
    how = device_profile_for(device_type, source.dtype)
    budget_bytes = None
    if mode != "strips":
        with pytest.raises(TooLarge) as refused:
            plan(lower(module, task), arithmetic=how, budget_bytes=1, **about)
        budget_bytes = refused.value.least_bytes
    return plan(lower(module, task), arithmetic=how, budget_bytes=budget_bytes, **about)


class AsOnCuda(TorchDispatchMode):
    """CUDA's batch norm: mean and deviation go where the caller wants them, and are read from there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.native_batch_norm.out:
            return func(*args, **(kwargs or {}))
        rows, weight, bias, mean, variance, _training, _momentum, eps = args
        out, kept_mean, kept_deviation = (kwargs[name] for name in ("out", "save_mean", "save_invstd"))
        kept_mean.resize_(mean.shape).copy_(mean)
        kept_deviation.resize_(mean.shape).copy_((variance + eps).rsqrt())
        each = (1, -1, 1, 1)
        normal = (rows - kept_mean.view(each)) * kept_deviation.view(each)
        out.copy_(normal * weight.view(each) + bias.view(each))
        return out, kept_mean, kept_deviation


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", ["decode", "encode"])
@torch.no_grad()
def test_the_plan_of_a_gpu_gives_the_plain_picture(task, mode) -> None:
    module = small_kl(4).double()
    source = torch.randn(1, *((4, 6, 5) if task == "decode" else (3, 48, 40)), dtype=torch.float64)
    chosen = planned(module, task, source, "cuda", mode)
    with AsOnCuda():
        made = Executor(lower(module, task), module).run(source, chosen)
    expected = module.decode(source).sample if task == "decode" else module.encode(source).latent_dist.parameters
    assert (made - expected).norm() < 1e-12 * expected.norm()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("task", ["decode", "encode"])
@pytest.mark.parametrize("make", [small_kl, small_tiny])
@torch.no_grad()
def test_nothing_is_mixed_with_the_cpu(make, task, dtype, mode) -> None:
    """torch refuses to mix devices, and ``meta`` is one that is everywhere."""
    module = torch.nn.Module.to(make(4), device="meta", dtype=dtype)
    source = torch.empty(1, *((4, 6, 5) if task == "decode" else (3, 48, 40)), device="meta", dtype=dtype)
    chosen = planned(module, task, source, "meta", mode)
    made = Executor(lower(module, task), module).run(source, chosen)
    assert (made.device.type, made.dtype) == ("meta", dtype)


def test_free_is_what_nobody_has_and_what_torch_keeps(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (700, 8000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 300)
    assert free_bytes(torch.device("cuda")) == 900
    monkeypatch.setattr(device_memory, "granted_bytes", lambda: 700)
    assert free_bytes(torch.device("cpu")) == 700


@pytest.fixture
def gpu(monkeypatch) -> Any:
    """A CPU that is taken for a GPU, and a way to say how much of its memory is free."""
    monkeypatch.setattr(runner, "device_profile_for", lambda _, dtype: device_profile_for("cuda", dtype))
    monkeypatch.setattr(runner, "_FREE_STEP_BYTES", 1)
    return lambda free: monkeypatch.setattr(runner, "free_bytes", lambda _: free)


@torch.no_grad()
def test_without_a_budget_a_gpu_takes_what_is_free(gpu) -> None:
    vae, latents = small_kl(4), torch.randn(1, 4, 24, 16)
    expected = vae.decode(latents).sample
    exact = hybridge.exact(vae)
    gpu(2**33)
    whole = exact.plan("decode", 1, 24, 16)
    assert whole.mode == "whole"
    for free in (whole.peak_bytes, whole.peak_bytes // 3):
        gpu(free)
        chosen = exact.plan("decode", 1, 24, 16)
        assert chosen.mode != "whole"
        assert chosen.peak_bytes <= 0.9 * free
        assert (exact.decode(latents).sample - expected).norm() < 1e-5 * expected.norm()


@torch.no_grad()
def test_where_nothing_fits_what_is_free_the_least_is_tried(gpu) -> None:
    exact = hybridge.exact(small_kl(4))
    gpu(1000)
    assert exact.plan("decode", 1, 24, 16).mode == "spill"
    with pytest.raises(TooLarge):
        hybridge.exact(small_kl(4), budget=1000).plan("decode", 1, 24, 16)
    exact.decode(torch.randn(1, 4, 24, 16))
