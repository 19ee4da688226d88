"""Planning: what is promised about memory, held against what torch allocates."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from conftest import small_kl, small_tiny
from diffusers import AutoencoderKL
from films import small_qwen

import hybridge
from hybridge.engine.execution.executor import Executor
from hybridge.engine.kernels.compiled import multiplies_bfloat16
from hybridge.engine.planning.conv_algorithms import DeviceProfile
from hybridge.engine.planning.plan import IN_MEMORY, WITHIN_ROUNDING, Plan, plan
from hybridge.engine.program.lowering import lower, skeleton
from hybridge.engine.program.ops import Attend
from hybridge.errors import RequestError, TooLarge
from hybridge.lab.harness.memory import PeakBytes

GIB = 2**30

SD = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
}


def planned(module: torch.nn.Module, task: str, shape: tuple[int, ...], **options: Any) -> Plan:
    batch, _, height, width = shape
    options = {"arithmetic": DeviceProfile(4, 4, 2**20)} | options
    return plan(lower(module, task), batch=batch, height=height, width=width, **options)


#: Dtype, bytes of a number in what is computed, pictures, and the channels from which convolutions are transformed.
_ARITHMETIC = [
    (torch.float32, 4, 1, None),
    (torch.float32, 4, 1, 1),
    (torch.float32, 4, 2, 1),
    (torch.bfloat16, 2, 1, None),
    (torch.bfloat16, 4, 1, 1),
]


@pytest.mark.parametrize("modes", [("whole",), ("strips",), ("lean", "recompute")], ids=str)
@pytest.mark.parametrize("strip_bytes", [2**19, 1])
@pytest.mark.parametrize(("task", "shape"), [("decode", (4, 5, 7)), ("encode", (3, 43, 51))])
@pytest.mark.parametrize("make", [small_kl, small_tiny])
@pytest.mark.parametrize(
    ("dtype", "computed_bytes", "batch", "transform_from"),
    _ARITHMETIC,
    ids=["direct", "transformed", "two", "bfloat16", "widened"],
)
@torch.no_grad()
def test_peak_is_what_torch_allocates(
    make, task, shape, modes, strip_bytes, transform_from, dtype, computed_bytes, batch
) -> None:
    if modes == ("whole",) and strip_bytes > 1:
        pytest.skip("the plain module has no strips")
    is_first = (computed_bytes, batch, transform_from) == (4, 1, None)
    if not is_first and (task == "decode") != (make is small_kl):
        pytest.skip("beside the first arithmetic, each model is planned for one task")
    module = torch.nn.Module.to(make(4), dtype)
    source = torch.randn(batch, *shape, dtype=dtype)
    arithmetic = DeviceProfile(dtype.itemsize, computed_bytes, strip_bytes, transform_from)
    budget = None if modes == ("whole",) else 2**40
    try:
        chosen = planned(module, task, source.shape, arithmetic=arithmetic, modes=modes, budget_bytes=budget)
    except TooLarge:
        pytest.skip("nothing in this program can be streamed to any use")
    executor = Executor(lower(module, task), module)
    if chosen.steps:
        executor.run(source, chosen)  # what is made once from the weights is weights
    gc.collect()
    with PeakBytes([module]) as live:
        live.count(source)
        result = executor.run(source, chosen) if chosen.steps else getattr(module, task)(source)
    assert result is not None
    # Pictures this small leave a few kilobytes between what one strip and the next take.
    assert chosen.peak_bytes == pytest.approx(live.peak_bytes, rel=0.1, abs=10_000)


@pytest.mark.skipif(not multiplies_bfloat16(), reason="this processor has no products of bfloat16 (AVX512_BF16)")
@pytest.mark.parametrize("modes", [("strips",), ("lean", "recompute")], ids=str)
@pytest.mark.parametrize("strip_bytes", [2**21, 1])
@torch.no_grad()
def test_peak_where_products_are_of_bfloat16(modes, strip_bytes) -> None:
    # Without attention, whose prepared weights would be counted as the views of them that torch makes.
    config = SD | {
        "block_out_channels": [64, 64, 288, 288],
        "layers_per_block": 1,
        "mid_block_add_attention": False,
    }
    module = torch.nn.Module.to(AutoencoderKL(**config), torch.bfloat16)
    source = torch.randn(1, 4, 12, 16, dtype=torch.bfloat16)
    arithmetic = DeviceProfile(2, 4, strip_bytes, 64, multiplies_bfloat16=True)
    chosen = planned(module, "decode", source.shape, arithmetic=arithmetic, modes=modes, budget_bytes=2**40)
    assert any(step.way is not None and step.way.in_bfloat16 for step in chosen.steps)
    executor = Executor(lower(module, "decode"), module)
    executor.run(source, chosen)
    gc.collect()
    with PeakBytes([module]) as live:
        live.count(source)
        result = executor.run(source, chosen)
    assert result is not None
    assert chosen.peak_bytes == pytest.approx(live.peak_bytes, rel=0.1)


class TestFullSize:
    """SD's decoder and encoder, no weights: arithmetic only."""

    decoder = lower(skeleton("AutoencoderKL", SD), "decode")
    encoder = lower(skeleton("AutoencoderKL", SD), "encode")

    def plan(self, size: int, *, encode: bool = False, strip_bytes: int | None = None, **options: Any) -> Plan:
        side = size if encode else size // 8
        arithmetic = DeviceProfile(2, 2, strip_bytes)
        options = {"arithmetic": arithmetic} | options
        return plan(self.encoder if encode else self.decoder, batch=1, height=side, width=side, **options)

    @pytest.mark.parametrize("stored", [4, 2])
    @pytest.mark.parametrize("encode", [False, True])
    def test_without_a_budget_a_cpu_is_frugal(self, encode, stored) -> None:
        on_cpu = DeviceProfile(stored, 4, 8 * 2**20, 32)
        for size in (1024, 2048):
            chosen = self.plan(size, encode=encode, arithmetic=on_cpu)
            whole = self.plan(size, encode=encode, modes=("whole",))
            assert chosen.peak_bytes <= (0.36 if not encode else 0.55) * whole.peak_bytes * stored / 2
            assert chosen.flops <= 1.15 * whole.flops

    def test_strips_take_half_of_what_the_plain_forward_takes(self) -> None:
        for size in (1024, 2048):
            whole, strips = self.plan(size), self.plan(size, strip_bytes=2**20, modes=("strips",))
            assert whole.mode == "whole"
            assert strips.peak_bytes <= 0.55 * whole.peak_bytes

    def test_two_activations_at_a_time(self) -> None:
        chosen = self.plan(1024, strip_bytes=2**20, modes=("strips",))
        for index in range(len(chosen.steps)):
            assert sum(b.first_op <= index <= b.last_op for b in chosen.buffers) <= 2

    @pytest.mark.parametrize("size", [512, 2048])
    def test_no_strip_of_attention_is_long(self, size) -> None:
        attention = next(index for index, op in enumerate(self.decoder.ops) if isinstance(op, Attend))
        bounded, unbounded = (
            self.plan(size, arithmetic=DeviceProfile(4, 4, 2**24, attended_positions=most)).steps[attention]
            for most in (1024, None)
        )
        assert bounded.rows * size // 8 == 1024 < unbounded.rows * size // 8
        assert bounded.strips == (size // 8) ** 2 // 1024
        assert bounded.scratch_bytes < unbounded.scratch_bytes

    def test_every_mode_counts_its_own_arithmetic(self) -> None:
        once = self.plan(512, strip_bytes=2**20, modes=("strips",))
        assert self.plan(512).flops == once.flops == 2127971876864
        again = self.plan(
            512, strip_bytes=2**20, modes=("lean", "recompute"), budget_bytes=3 * once.peak_bytes // 5
        )
        assert again.flops > once.flops
        assert any(step.is_streamed for step in again.steps)

    def test_less_and_less_memory_for_more_and_more_work(self) -> None:
        on_cpu, modes = DeviceProfile(2, 4, 8 * 2**20, 32), []
        budget, flops = 8 * GIB, 0
        while budget:
            try:
                chosen = self.plan(2048, arithmetic=on_cpu, budget_bytes=budget)
            except TooLarge:
                break
            assert chosen.peak_bytes <= budget
            assert chosen.flops >= flops or chosen.mode == "spill"  # which parks instead of making again
            modes.append(chosen.mode)
            budget, flops = chosen.peak_bytes - 1, chosen.flops
        assert list(dict.fromkeys(modes)) == ["strips", "lean", "recompute", "spill"]
        assert modes.count("spill") > 1
        assert budget < 0.4 * GIB  # one activation of the widest block is 1 GiB

    def test_tiles_are_the_last_resort_and_only_if_allowed(self) -> None:
        options = {"budget_bytes": GIB // 2, "tile": (64, 64)}
        with pytest.raises(TooLarge):
            self.plan(2048, **options, modes=IN_MEMORY)
        assert self.plan(2048, **options, modes=(*WITHIN_ROUNDING, "tiles")).mode == "spill"
        chosen = self.plan(2048, **options, modes=(*IN_MEMORY, "tiles"))
        assert chosen.mode == "tiles"
        assert chosen.peak_bytes <= GIB // 2
        assert "an approximation was allowed" in chosen.reason

    def test_a_budget_makes_strips_on_a_device_that_needs_none(self) -> None:
        chosen = self.plan(1024, budget_bytes=1 * GIB)
        assert chosen.mode == "strips"
        assert chosen.peak_bytes <= 1 * GIB
        assert "the plain forward takes about 1.51 GiB and the budget is 1 GiB; strips of" in chosen.reason

    def test_without_a_budget_a_gpu_runs_the_plain_forward(self) -> None:
        chosen = self.plan(1024)
        assert (chosen.mode, chosen.steps, chosen.strips) == ("whole", (), 0)
        assert "no budget was set" in chosen.reason
        assert self.plan(1024, budget_bytes=chosen.peak_bytes).mode == "whole"

    def test_a_smaller_budget_makes_smaller_strips(self) -> None:
        generous = self.plan(1024, strip_bytes=64 * 2**20, budget_bytes=8 * GIB)
        tight = self.plan(1024, strip_bytes=64 * 2**20, budget_bytes=generous.peak_bytes - 1)
        assert tight.strips > generous.strips
        assert tight.peak_bytes < generous.peak_bytes
        assert tight.reason != generous.reason

    @pytest.mark.parametrize("encode", [False, True])
    def test_the_smallest_budget_is_named_and_enough(self, encode) -> None:
        with pytest.raises(TooLarge, match="at least") as refused:
            self.plan(2048, encode=encode, budget_bytes=2**20)
        number, unit = str(refused.value.expected).removeprefix("at least ").split()
        smallest = int(float(number) * {"GiB": 2**30, "MiB": 2**20}[unit])
        assert self.plan(2048, encode=encode, budget_bytes=smallest).peak_bytes <= smallest
        with pytest.raises(TooLarge):
            self.plan(2048, encode=encode, budget_bytes=int(smallest * 0.99))

    def test_the_steps_fill_every_target(self) -> None:
        chosen = self.plan(520, strip_bytes=2**20, modes=("strips",))
        sizes = self.decoder.sizes(65, 65)
        for op, step in zip(self.decoder.ops, chosen.steps, strict=True):
            assert (step.strips - 1) * step.rows < sizes[op.target][0] <= step.strips * step.rows
        assert chosen.steps[-1].buffer is None


@pytest.mark.parametrize("budget", [0, -1])
def test_no_budget_at_all_is_refused(budget) -> None:
    with pytest.raises(RequestError, match="not a budget"):
        planned(small_kl(4), "decode", (1, 4, 8, 8), budget_bytes=budget)


def test_a_program_that_no_allowed_mode_can_run_is_refused() -> None:
    with pytest.raises(TooLarge):
        planned(small_kl(4), "decode", (1, 4, 64, 64), modes=("tiles",))


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (1, 4, 0, 8)])
def test_nothing_to_run_is_refused(shape) -> None:
    with pytest.raises(RequestError, match="nothing to run"):
        planned(small_kl(4), "decode", shape)


def test_a_picture_too_small_for_the_encoder_is_refused() -> None:
    with pytest.raises(RequestError, match="too small"):
        planned(small_kl(4), "encode", (1, 3, 3, 64))


def test_streaming_a_value_that_costs_no_multiplication() -> None:
    vae = hybridge.exact(small_qwen())
    vae.budget_bytes = vae.plan("encode", 1, 64, 64).peak_bytes * 9 // 10
    assert vae.plan("encode", 1, 64, 64).peak_bytes <= vae.budget_bytes
