"""Films whose class computes tiles and blends them, Allegro's, against that class in float64."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from films import distance, in_float64, noise, plainly, small_allegro, to

import hybridge
from hybridge.engine.execution.tiled_film_executor import TiledFilmExecutor
from hybridge.engine.planning.conv_algorithms import DeviceProfile
from hybridge.engine.planning.plan import Plan
from hybridge.engine.planning.tiled_film_plan import plan_tiles
from hybridge.engine.program.lowering import lower
from hybridge.engine.program.program import Program
from hybridge.engine.runner import Runner
from hybridge.engine.vae_adapters import Call
from hybridge.errors import RequestError, Stopped, TooLarge
from hybridge.lab.harness.memory import PeakBytes


def source_for(task: str, *, seed: int = 0) -> torch.Tensor:
    """Two tiles along each axis, and a little that no tile covers."""
    return noise(1, 4, 3, 6, 9, seed=seed) if task == "decode" else noise(1, 3, 13, 13, 17, seed=seed).clamp(-1, 1)


def plans(program: Program, source: torch.Tensor, how: DeviceProfile, **options: Any) -> Iterator[Plan]:
    """Yield a plan in memory, and the one that takes least."""
    batch, _, frames, height, width = source.shape
    options |= {"batch": batch, "frames": frames, "height": height, "width": width, "arithmetic": how}
    yield plan_tiles(program, modes=("strips",), **options)
    with pytest.raises(TooLarge) as refused:
        plan_tiles(program, modes=("strips", "lean", "spill"), budget_bytes=1, **options)
    least = refused.value.least_bytes
    chosen = plan_tiles(program, modes=("strips", "lean", "spill"), budget_bytes=least, **options)
    assert chosen.peak_bytes <= least
    yield chosen


@pytest.mark.parametrize("task", ["decode", "encode"])
def test_tiles_give_the_right_answer(task) -> None:
    module = to(small_allegro(), torch.float64)
    source = source_for(task).double()
    program, judge = lower(module, task), in_float64(module, task, source)
    for strip_bytes in (2**16, 1):
        for chosen in plans(program, source, DeviceProfile(8, 8, strip_bytes, transform_from=1)):
            heard: list[tuple[int, int]] = []
            made = TiledFilmExecutor(program, module).run(
                source, chosen, progress=lambda *count, to=heard: to.append(count)
            )
            assert distance(made, judge) < 1e-12
            assert heard == [(done, chosen.strips) for done in range(1, chosen.strips + 1)]


@pytest.mark.parametrize(
    ("dtype", "how"),
    [(torch.float32, DeviceProfile(4, 4, 2**16)), (torch.bfloat16, DeviceProfile(2, 4, 2**16, transform_from=1))],
    ids=["float32", "bfloat16"],
)
@pytest.mark.parametrize("task", ["decode", "encode"])
def test_no_further_from_float64_than_the_plain_forward(task, dtype, how) -> None:
    ours = plain = 0.0
    for seed in range(2):
        module, source = to(small_allegro(seed), dtype), source_for(task, seed=seed).to(dtype)
        judge, program = in_float64(module, task, source), lower(module, task)
        plain += distance(plainly(module, task, source), judge)
        chosen = next(plans(program, source, how))
        ours += distance(TiledFilmExecutor(program, module).run(source, chosen), judge)
    assert ours <= plain


@pytest.mark.parametrize("task", ["decode", "encode"])
def test_peak_is_what_torch_allocates_and_stopping_frees_it(task) -> None:
    module = small_allegro()
    module.kernel, module.stride = (8, 32, 40), (4, 24, 24)
    source = noise(1, 4, 3, 16, 20) if task == "decode" else noise(1, 3, 12, 32, 40)
    program = lower(module, task)
    executor = TiledFilmExecutor(program, module)
    chosen = next(plans(program, source, DeviceProfile(4, 4, 2**16)))
    executor.run(source, chosen)  # what is made once from the weights is weights
    gc.collect()
    with PeakBytes([module]) as live:
        live.count(source)
        assert executor.run(source, chosen) is not None
    assert chosen.peak_bytes == pytest.approx(live.peak_bytes, rel=0.1)
    asked: list[int] = []

    def in_the_middle() -> bool:
        asked.append(0)
        return len(asked) == chosen.strips // 2

    with PeakBytes([module]) as live:
        live.count(source)
        with pytest.raises(Stopped, match="strips done"):
            executor.run(source, chosen, should_stop=in_the_middle)
        gc.collect()
        assert live.live_bytes == source.nbytes


def test_frames_leave_once_no_further_tile_adds_to_them() -> None:
    module, latents = small_allegro(), source_for("decode")
    runner, heard, done = Runner(module), list[torch.Tensor](), list[int]()
    call = Call(is_bitwise=False, on_chunk=heard.append)
    made = runner.run("decode", latents, modes=("strips",), call=call, progress=lambda *_: done.append(len(heard)))
    assert made.shape[2] == 0
    assert torch.equal(torch.cat(heard, 2), runner.run("decode", latents, modes=("strips",)))
    assert max(done) == 4, "those before the second tiles' first frame"


@torch.no_grad()
def test_exact_answers_as_the_class_does() -> None:
    module = small_allegro()
    latents, pixels = source_for("decode"), source_for("encode")
    exact = hybridge.exact(module, budget="1MiB")
    assert exact.why_plain("decode", latents) is None
    pair = torch.cat([latents, latents.flip(2)])
    assert exact.decode(pair).sample.shape == (2, *module.decode(latents).sample.shape[1:])
    judge = in_float64(module, "decode", latents).transpose(1, 2)
    assert distance(exact.decode(pair).sample[:1], judge) < 1e-5
    mode = exact.encode(pixels).latent_dist.mode()
    assert distance(mode, in_float64(module, "encode", pixels)[:, :4]) < 1e-5
    with pytest.raises(RequestError, match="a tile is of 2×4×5"):
        exact.decode(latents[:, :, :1])
