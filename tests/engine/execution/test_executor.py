"""Strip runs against the plain forward, with the float64 forward as the judge of both."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import small_kl, small_tiny
from diffusers import AutoencoderKL, AutoencoderKLFlux2

from hybridge.engine.device_profile import device_profile_for
from hybridge.engine.execution.executor import Executor
from hybridge.engine.planning.conv_algorithms import DeviceProfile
from hybridge.engine.planning.footprint import Footprint
from hybridge.engine.planning.plan import Mode, Plan, plan
from hybridge.engine.planning.shape import Shape
from hybridge.engine.program.lowering import lower
from hybridge.engine.program.program import Program
from hybridge.engine.runner import Runner
from hybridge.errors import RequestError, Stopped
from hybridge.lab.harness.memory import PeakBytes

ONE_STRIP, MANY_STRIPS, ONE_ROW = 2**30, 2**13, 1


def planned(program: Program, source: torch.Tensor, strip_bytes: int, how: DeviceProfile | None = None) -> Plan:
    batch, _, height, width = source.shape
    how = how or DeviceProfile(source.itemsize, source.itemsize, transform_from=1 if source.itemsize > 2 else None)
    how = replace(how, strip_bytes=strip_bytes)
    modes: tuple[Mode, ...] = ("strips", "lean", "recompute")
    return plan(program, batch=batch, height=height, width=width, arithmetic=how, modes=modes)


def in_strips(
    module: Any,
    task: str,
    source: torch.Tensor,
    strip_bytes: int,
    how: DeviceProfile | None = None,
    **callbacks: Any,
) -> torch.Tensor:
    program = lower(module, task)
    return Executor(program, module).run(source, planned(program, source, strip_bytes, how), **callbacks)


@torch.no_grad()
def plainly(module: Any, task: str, source: torch.Tensor) -> torch.Tensor:
    if task == "decode":
        return module.decode(source).sample
    encoded = module.encode(source)
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.parameters


def in_float64(module: Any, task: str, source: torch.Tensor) -> torch.Tensor:
    dtype = module.dtype
    judge = plainly(to(module, torch.float64), task, source.double())
    to(module, dtype)
    return judge


def to(module: Any, dtype: torch.dtype) -> Any:
    return torch.nn.Module.to(module, dtype)  # diffusers' own warns


def distance(of: torch.Tensor, judge: torch.Tensor) -> float:
    return float((of.double() - judge).norm() / judge.norm())


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def source_for(task: str, latents: tuple[int, int], batch: int = 1, channels: int = 4) -> torch.Tensor:
    height, width = latents
    # For encoders three and five pixels more than whole latents: sizes that are no multiples.
    return (
        noise(batch, channels, height, width)
        if task == "decode"
        else noise(batch, 3, 8 * height + 3, 8 * width + 5).clamp(-1, 1)
    )


def small(*, blocks: int = 2, **config: Any) -> AutoencoderKL:
    """Channels that change from block to block, so that shortcuts are convolutions."""
    torch.manual_seed(0)
    config = {"block_out_channels": (8, 16, 24)[:blocks], "norm_num_groups": 4, "layers_per_block": 2} | config
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * blocks, up_block_types=["UpDecoderBlock2D"] * blocks, **config
    ).eval()


def small_flux2() -> AutoencoderKLFlux2:
    """With a decoder narrower than its encoder."""
    torch.manual_seed(0)
    return AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16),
        decoder_block_out_channels=(4, 8, 8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
    ).eval()


MODULES = {
    "sd": lambda: small_kl(4),
    "flux": lambda: small_kl(16, quant_conv=False),
    "tiny": lambda: small_tiny(4),
    "shortcuts": lambda: small(blocks=3),
    "no attention": lambda: small(mid_block_add_attention=False),
    "one group": lambda: small(norm_num_groups=1),
    "a group for every channel": lambda: small(block_out_channels=(8, 8), norm_num_groups=8),
    "one block": lambda: small(blocks=1),
    "flux2": small_flux2,
    "gelu": lambda: small(act_fn="gelu"),
}


@pytest.mark.parametrize("task", ["decode", "encode"])
@pytest.mark.parametrize("name", MODULES)
def test_float32_is_as_near_to_float64_as_the_plain_forward(name, task) -> None:
    module = MODULES[name]()
    source = source_for(task, (7, 5), channels=16 if name == "flux" else 4)
    judge = in_float64(module, task, source)
    allowed = 1.5 * distance(plainly(module, task, source), judge) + 2e-7
    for strip_bytes in (ONE_STRIP, MANY_STRIPS, ONE_ROW):
        assert distance(in_strips(module, task, source, strip_bytes), judge) <= allowed


@pytest.mark.parametrize("latents", [(1, 1), (1, 9), (9, 1), (8, 8), (13, 6)])
@pytest.mark.parametrize("task", ["decode", "encode"])
def test_any_size(task, latents) -> None:
    module = small_kl(4)
    source = source_for(task, latents)
    plain = plainly(module, task, source).double()
    for strip_bytes in (ONE_STRIP, ONE_ROW):
        made = in_strips(module, task, source, strip_bytes)
        assert made.is_contiguous()
        assert distance(made, plain) < 1e-5


@pytest.mark.parametrize("task", ["decode", "encode"])
def test_where_strips_begin_changes_rounding_only(task) -> None:
    module = to(small_kl(4), torch.float64)
    source = source_for(task, (9, 6)).double()
    first, *others = (in_strips(module, task, source, 2**power) for power in (30, 15, 12, 9, 0))
    plain = plainly(module, task, source)
    for made in (first, *others):
        assert distance(made, plain) < 1e-12


@pytest.mark.parametrize("task", ["decode", "encode"])
def test_items_of_a_batch_do_not_touch_each_other(task) -> None:
    module = small_kl(4)
    source = source_for(task, (6, 5), batch=3)
    together = in_strips(module, task, source, MANY_STRIPS)
    for index, alone in enumerate(source):
        assert torch.equal(together[index : index + 1], in_strips(module, task, alone[None], MANY_STRIPS))


@pytest.mark.parametrize(
    "how", [DeviceProfile(2, 2), DeviceProfile(2, 4, transform_from=1)], ids=["as it is", "widened"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("task", ["decode", "encode"])
@pytest.mark.parametrize("make", [small_kl, small_tiny])
def test_half_precision_is_no_further_from_float64_than_the_plain_forward(make, task, dtype, how) -> None:
    """Over several models, for one model's rounding is a draw."""
    ours = plain = 0.0
    for seed in range(4):
        module = to(make(4, seed=seed), dtype)
        source = noise(1, 4, 10, 9, seed=seed) if task == "decode" else noise(1, 3, 72, 64, seed=seed).clamp(-1, 1)
        source = source.to(dtype)
        judge = in_float64(module, task, source)
        ours += distance(in_strips(module, task, source, 2**17, how), judge)
        plain += distance(plainly(module, task, source), judge)
    assert ours <= (1.1 if how.computed_bytes == 2 else 1.0) * plain


@pytest.mark.skipif(
    not device_profile_for("cpu", torch.bfloat16).multiplies_bfloat16,
    reason="on this processor bfloat16 is not multiplied by our loops: it has no AVX512_BF16, or AMX besides",
)
@pytest.mark.parametrize("task", ["decode", "encode"])
def test_products_of_bfloat16_are_no_further_from_float64_than_the_plain_forward(task) -> None:
    """Ops of more than 256 channels and those behind ×2, whose shortcuts are multiplied so, too."""
    ours = plain = 0.0
    how = DeviceProfile(2, 4, transform_from=1, multiplies_bfloat16=True)
    for seed in range(3):
        module = to(wide_kl(seed), torch.bfloat16)
        source = noise(1, 4, 12, 9, seed=seed) if task == "decode" else noise(1, 3, 24, 32, seed=seed).clamp(-1, 1)
        source = source.bfloat16()
        judge = in_float64(module, task, source)
        for strip_bytes in (ONE_STRIP, MANY_STRIPS):
            ours += distance(in_strips(module, task, source, strip_bytes, how), judge) / 2
        plain += distance(plainly(module, task, source), judge)
    assert ours <= plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [(16, 32), (64, 64), (32, 96), (128, 128), (128, 256)])
@pytest.mark.parametrize("task", ["decode", "encode"])
def test_no_further_from_float64_however_wide_it_is(task, channels, dtype) -> None:
    """As this machine computes.  With AVX2, tiles are larger: for most models torch rounds more there, too."""
    ours = plain = 0.0
    for seed in range(2):
        module = to(small_of(channels, seed), dtype)
        source = noise(1, 4, 40, 24, seed=seed) if task == "decode" else noise(1, 3, 80, 48, seed=seed).clamp(-1, 1)
        source = source.to(dtype)
        judge = in_float64(module, task, source)
        with torch.no_grad():
            ours += distance(Runner(module).run(task, source, modes=("strips",)), judge)
        plain += distance(plainly(module, task, source), judge)
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    assert ours <= (1.0 if has_avx512 or dtype == torch.bfloat16 else 1.75) * plain


def small_of(channels: tuple[int, int], seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=channels,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=8,
    ).eval()


def wide_kl(seed: int) -> AutoencoderKL:
    """One ×2 and one shortcut, with as many channels as are multiplied in bfloat16 where a CPU can."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=(64, 288),
        layers_per_block=1,
        latent_channels=4,
    ).eval()


def test_means_far_from_zero_keep_their_variance() -> None:
    """Sums of squares in float32 would lose it: the mean is a thousand times the deviation."""
    module = small(blocks=1, mid_block_add_attention=False)
    module.decoder.conv_in.bias.data += 1000.0
    source = noise(1, 4, 24, 16)
    judge = in_float64(module, "decode", source)
    plain = distance(plainly(module, "decode", source), judge)
    assert distance(in_strips(module, "decode", source, ONE_ROW), judge) <= 1.5 * plain


@pytest.mark.parametrize("task", ["decode", "encode"])
@pytest.mark.parametrize("make", [small_kl, small_tiny, lambda *_: small(blocks=3)])
@pytest.mark.parametrize("transform_from", [None, 1])
def test_streaming_changes_rounding_only(make, task, transform_from) -> None:
    """Every choice of what exists whole, down to where nothing more can be streamed."""
    module = to(make(4), torch.float64)
    source, program = source_for(task, (9, 6)).double(), lower(module, task)
    plain = plainly(module, task, source)
    how = DeviceProfile(8, 8, MANY_STRIPS, transform_from)
    level: Footprint | None = Footprint(Shape(program, 1, *source.shape[2:], how))
    streamed = 0
    while level is not None:
        chosen = replace(
            planned(program, source, MANY_STRIPS, how),
            steps=level.steps(MANY_STRIPS),
            buffers=level.buffers,
            last_reads=level.last_reads,
        )
        assert distance(Executor(program, module).run(source, chosen), plain) < 1e-12
        streamed = len(level.streamed)
        level = level.leaner(MANY_STRIPS, only_doubled=False)
    assert streamed >= 1


def test_float16_that_overflows_is_kept_in_bfloat16(caplog) -> None:
    """The original SDXL VAE's activations pass float16's 65504, and a plain forward gives black pictures."""
    module = small(blocks=1, mid_block_add_attention=False)
    module.decoder.conv_in.weight.data *= 2e5
    source = noise(1, 4, 160, 160)
    expected = plainly(module, "decode", source)
    module, source = to(module, torch.float16), source.half()
    with torch.no_grad():
        assert not module.decode(source).sample.isfinite().all()
        runner = Runner(module)
        made = runner.run("decode", source)
        assert made.dtype is torch.float16
        assert distance(made, expected.double()) < 0.05
        assert "overflowed float16" in caplog.text
        caplog.clear()
        assert torch.equal(runner.run("decode", source), made)
        assert not caplog.text


def test_any_memory_format_is_read() -> None:
    module = small_kl(4)
    source = noise(2, 4, 6, 5)
    expected = in_strips(module, "decode", source, MANY_STRIPS)
    for other in (
        source.to(memory_format=torch.channels_last),
        source.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        assert torch.equal(in_strips(module, "decode", other, MANY_STRIPS), expected)


def test_the_source_is_left_as_it_was() -> None:
    for module, task in [(small_kl(4), "encode"), (small_tiny(4), "encode"), (small_tiny(4), "decode")]:
        source = source_for(task, (4, 4))
        before = source.clone()
        in_strips(module, task, source, MANY_STRIPS)
        assert torch.equal(source, before)


def written_to(layer: torch.nn.Conv2d) -> None:
    layer.weight.mul_(2)


def replaced(layer: torch.nn.Conv2d) -> None:
    layer.weight = torch.nn.Parameter(2 * layer.weight)


@pytest.mark.parametrize("change", [written_to, replaced])
def test_weights_that_change_are_used(change) -> None:
    module = small_kl(4)
    program = lower(module, "decode")
    source = noise(1, 4, 4, 4)
    chosen = planned(program, source, 2**20)
    executor = Executor(program, module)
    executor.run(source, chosen)
    with torch.no_grad():
        change(module.decoder.up_blocks[0].upsamplers[0].conv)
    assert distance(executor.run(source, chosen), plainly(module, "decode", source).double()) < 1e-5


def test_what_preparing_weights_has_freed_is_given_back(monkeypatch) -> None:
    trims: list[str] = []
    monkeypatch.setattr("hybridge.engine.execution.executor.trim", lambda: trims.append(""))
    module, source = small_kl(4), noise(1, 4, 4, 4)
    program = lower(module, "decode")
    executor = Executor(program, module)
    for expected in (1, 1):  # once for all runs
        executor.run(source, planned(program, source, 2**20))
        assert len(trims) == expected


@pytest.mark.parametrize("inside", [True, False])
def test_a_module_that_was_made_in_inference_mode(inside) -> None:
    with torch.inference_mode():
        module, source = small_kl(4), noise(1, 4, 4, 4)
        expected = plainly(module, "decode", source).double()
    with torch.inference_mode(inside):
        assert distance(in_strips(module, "decode", source.clone(), MANY_STRIPS), expected) < 1e-5


def test_progress_counts_every_strip() -> None:
    heard: list[tuple[int, int]] = []
    in_strips(small_kl(4), "decode", noise(2, 4, 4, 4), MANY_STRIPS, progress=lambda *count: heard.append(count))
    total = heard[0][1]
    assert heard == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("strips_before", [1, 60])
def test_stopping_frees_the_memory(strips_before) -> None:
    module, source = small_kl(4), noise(1, 4, 8, 8)
    program = lower(module, "decode")
    executor, chosen = Executor(program, module), planned(program, source, MANY_STRIPS)
    executor.run(source, chosen)  # what is made once from the weights stays
    asked: list[int] = []

    def after_some() -> bool:
        asked.append(0)
        return len(asked) == strips_before

    with PeakBytes([module]) as live:
        with pytest.raises(Stopped, match=rf"saw {strips_before} of \d+ strips done") as stopped:
            executor.run(source, chosen, should_stop=after_some)
        gc.collect()
        assert stopped.value is not None  # the traceback is still here
        assert live.live_bytes == source.nbytes
        assert live.peak_bytes > 0


@pytest.mark.parametrize("source", [noise(1, 4, 8, 9), noise(1, 4, 8, 8).double(), noise(2, 4, 8, 8)])
def test_a_source_that_was_not_planned_for_is_refused(source) -> None:
    module = small_kl(4)
    program = lower(module, "decode")
    chosen = planned(program, noise(1, 4, 8, 8), 2**20)
    with pytest.raises(RequestError, match="not what this plan was made for"):
        Executor(program, module).run(source, chosen)
