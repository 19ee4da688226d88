"""Films in every schedule against the plain forward in float64, which runs one latent frame after another."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import IdentityDistribution
from films import (
    beside,
    distance,
    in_float64,
    noise,
    plainly,
    small_cogvideox,
    small_cosmos,
    small_hunyuan,
    small_hunyuan_15,
    small_kvae_video,
    small_ltx,
    small_ltx_2,
    small_ltx_timed,
    small_magvit,
    small_mochi,
    small_qwen,
    small_svd,
    small_wan,
    small_wan_22,
    source_for,
    takes_blocks,
    to,
)
from schedules import as_plan, plans

import hybridge
from hybridge.engine.execution.film_executor import FilmExecutor
from hybridge.engine.planning.conv_algorithms import DeviceProfile
from hybridge.engine.planning.film_footprint import FilmFootprint
from hybridge.engine.planning.film_plan import plan_film, sections_of
from hybridge.engine.planning.film_shape import FilmShape
from hybridge.engine.program.lowering import lower
from hybridge.engine.runner import Runner
from hybridge.engine.vae_adapters import Call
from hybridge.errors import RequestError, Stopped, TooLarge
from hybridge.lab.harness.memory import PeakBytes

#: Fewer blocks than the real ones, with each kind of resampling.
SHORT: dict[str, Any] = {"dim_mult": [1, 2, 2], "temperal_downsample": [True, True]}

MODULES = {
    "hunyuan": small_hunyuan,
    "hunyuan 1.5": small_hunyuan_15,
    "wan 2.2": small_wan_22,
    "magvit": small_magvit,
    "cogvideox": small_cogvideox,
    "cosmos": small_cosmos,
    "mochi": small_mochi,
    "svd": small_svd,
    "kvae video": small_kvae_video,
    "ltx": small_ltx,
    "ltx 2": small_ltx_2,
    "ltx 0.9.1": small_ltx_timed,
    "wan": lambda seed=0: small_wan(seed, **SHORT),
    "qwen": lambda: small_qwen(**SHORT),
    "time in none": lambda: small_wan(dim_mult=[1, 2], temperal_downsample=[False]),
}

#: One of every class and version.
EACH = [name for name in MODULES if name not in ("qwen", "time in none")]


def check_schedules(module: Any, task: str, source: torch.Tensor, strip_bytes: int, *, every: bool = False) -> int:
    program, judge = lower(module, task), in_float64(module, task, source)
    executor = FilmExecutor(program, module)
    count = 0
    how = DeviceProfile(8, 8, strip_bytes, transform_from=1)
    for chosen in plans(program, source, how, strip_bytes, every=every):
        assert distance(executor.run(source, chosen, **beside(module, task, source)), judge) < 1e-12
        count += 1
    return count


@pytest.mark.parametrize("task", ["decode", "encode"])
def test_every_schedule_gives_the_right_answer(task) -> None:
    """Five latent frames: all of them at once, four, two and one at a time, and by rows."""
    module = to(small_wan(**SHORT), torch.float64)
    assert check_schedules(module, task, source_for(task, 5, (3, 2)).double(), 2**17, every=True) == 11 + (
        task == "decode"
    )


def test_every_schedule_of_a_decoder_that_looks_ahead() -> None:
    """Seven latent frames, of which the last changes those from the first fourth on."""
    module = to(small_ltx(), torch.float64)
    assert check_schedules(module, "decode", source_for("decode", 7, (2, 2)).double(), 2**17, every=True) == 11


@pytest.mark.parametrize("task", ["decode", "encode"])
@pytest.mark.parametrize("name", MODULES)
def test_every_model_gives_the_right_answer(name, task) -> None:
    module = to(MODULES[name](), torch.float64)
    source = source_for(task, 3, (3, 2), is_whole=takes_blocks(module)).double()
    check_schedules(module, task, source, 2**16)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("task", ["decode", "encode"])
def test_strips_of_one_row(task, name) -> None:
    module = to(MODULES[name](), torch.float64)
    check_schedules(module, task, source_for(task, 2, (2, 2), is_whole=takes_blocks(module)).double(), 1)


@pytest.mark.parametrize("make", [lambda: small_wan(**SHORT), small_hunyuan], ids=["wan", "hunyuan"])
@pytest.mark.parametrize("latents", [(1, 1), (1, 3), (5, 2)])
@pytest.mark.parametrize("task", ["decode", "encode"])
def test_any_size(task, latents, make) -> None:
    module = to(make(), torch.float64)
    check_schedules(module, task, source_for(task, 2, latents).double(), 2**16)


@pytest.mark.parametrize("frames", [2, 4, 8, 10])
def test_an_encoder_drops_frames_that_no_latent_frame_holds(frames) -> None:
    module = small_wan(**SHORT)
    pixels = noise(1, 3, frames, 16, 8).clamp(-1, 1)
    made = Runner(module).run("encode", pixels, modes=("strips", "frames"))
    plain = plainly(module, "encode", pixels).double()
    assert made.shape == plain.shape
    assert distance(made, plain) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "how", "times"),
    [
        (torch.float32, DeviceProfile(4, 4, 2**16), 1.15),  # 0.56 to 1.06; Cosmos' encoder 1.14
        (torch.bfloat16, DeviceProfile(2, 4, 2**16, transform_from=1), 1.0),
    ],
    ids=["float32", "bfloat16"],
)
@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("task", ["decode", "encode"])
def test_no_further_from_float64_than_the_plain_forward(task, dtype, how, times, name) -> None:
    """Over two models."""
    if (name, task, dtype) == ("cosmos", "encode", torch.bfloat16):
        pytest.skip("the class averages with a function that torch does not have for bfloat16 on a CPU")
    ours: dict[int, float] = {}
    plain = 0.0
    for seed in range(2):
        module = to(MODULES[name](seed), dtype)
        source = source_for(task, 2, (4, 3), seed=seed, is_whole=takes_blocks(module)).to(dtype)
        judge, program = in_float64(module, task, source), lower(module, task)
        plain += distance(plainly(module, task, source), judge)
        for number, chosen in enumerate(plans(program, source, how, 2**16)):
            made = FilmExecutor(program, module).run(source, chosen, **beside(module, task, source))
            ours[number] = ours.get(number, 0.0) + distance(made, judge)
    assert max(ours.values()) <= times * plain


@pytest.mark.parametrize("frames", [1, 2, 4, 5])
def test_segments_of_any_film(frames) -> None:
    """CogVideoX takes an odd latent frame with the first two, and makes a frame less of it."""
    module = to(small_cogvideox(), torch.float64)
    check_schedules(module, "decode", source_for("decode", frames, (2, 3)).double(), 2**16, every=frames == 5)
    pixels = noise(1, 3, 4 * frames if frames % 2 == 0 else 4 * frames - 3, 16, 24).double()
    check_schedules(module, "encode", pixels, 2**16, every=frames == 5)


@pytest.mark.parametrize("frames", [1, 6, 10])
def test_segments_of_which_the_last_is_shorter(frames) -> None:
    """KVAE for videos takes five latent frames, then four, and makes one frame of a single one in the last."""
    module = to(small_kvae_video(), torch.float64)
    latents = noise(1, 4, frames, 1, 2).double()
    assert lower(module, "decode").lengths(frames)[-1] == plainly(module, "decode", latents).shape[2]
    check_schedules(module, "decode", latents, 2**16)
    check_schedules(module, "encode", noise(1, 3, 4 * frames - 3, 4, 8).double(), 2**16)


def test_wavelets_of_two_levels_and_blocks_that_are_none() -> None:
    for config in ({"patch_size": 4, "temporal_compression_ratio": 8}, {"patch_type": "rearrange"}):
        module = to(small_cosmos(**config), torch.float64)
        frames = 1 + module.config.temporal_compression_ratio
        check_schedules(module, "decode", noise(1, 4, 2, 1, 2).double(), 2**16)
        check_schedules(module, "encode", noise(1, 3, frames, 8, 16).double(), 2**16)


def test_no_light_change_where_a_history_would_be_lost() -> None:
    """Others that decode in chunks lose a frame of history between frames 5 and 6."""
    module = to(small_wan(**SHORT), torch.float64)
    source = source_for("decode", 3, (3, 2)).double()
    program, judge = lower(module, "decode"), in_float64(module, "decode", source)
    for chosen in plans(program, source, DeviceProfile(8, 8, 2**16), 2**16):
        made = FilmExecutor(program, module).run(source, chosen)
        for frame in (4, 5, 6):
            assert distance(made[:, :, frame], judge[:, :, frame]) < 1e-12


def test_items_of_a_batch_do_not_touch_each_other() -> None:
    module = small_wan(**SHORT)
    source = noise(2, 4, 2, 3, 2)
    runner = Runner(module)
    together = runner.run("decode", source, modes=("frames",))
    for index, alone in enumerate(source):
        assert torch.equal(together[index : index + 1], runner.run("decode", alone[None], modes=("frames",)))


@pytest.mark.parametrize(
    ("name", "task", "strip_bytes"),
    [
        *((name, "decode", 2**16) for name in ("wan", "hunyuan", "magvit", "ltx")),
        *((name, "encode", 2**18) for name in ("wan", "hunyuan", "mochi", "ltx")),
    ],
)
def test_peak_is_what_torch_allocates(name, task, strip_bytes) -> None:
    module = MODULES[name]()
    source = source_for(task, 2, (8, 6), is_whole=takes_blocks(module))
    program = lower(module, task)
    executor = FilmExecutor(program, module)
    for chosen in plans(program, source, DeviceProfile(4, 4, strip_bytes), strip_bytes):
        executor.run(source, chosen)  # what is made once from the weights is weights
        gc.collect()
        with PeakBytes([module]) as live:
            live.count(source)
            result = executor.run(source, chosen)
        assert result is not None
        if chosen.parked_bytes:  # which torch counts as well
            assert live.peak_bytes <= 1.1 * (chosen.peak_bytes + chosen.parked_bytes)
        else:
            assert chosen.peak_bytes == pytest.approx(live.peak_bytes, rel=0.1, abs=20_000), chosen.mode


def test_frames_leave_as_soon_as_they_are_final() -> None:
    module, source = small_wan(**SHORT), noise(1, 4, 4, 3, 2)
    heard: list[torch.Tensor] = []
    done: list[tuple[int, int]] = []
    runner = Runner(module)
    call = Call(is_bitwise=False, on_chunk=heard.append)
    made = runner.run(
        "decode", source, modes=("frames",), call=call, progress=lambda *counts: done.append((len(heard), *counts))
    )
    assert made.numel() == 0
    assert sum(chunk.shape[2] for chunk in heard) == 13
    assert torch.equal(torch.cat(heard, 2), runner.run("decode", source, modes=("frames",)))
    assert len(heard) > 1
    first = next(strips for chunks, strips, _ in done if chunks)
    assert first < done[-1][2] / 1.5


@pytest.mark.parametrize("make", [lambda: small_wan(**SHORT), small_hunyuan], ids=["wan", "hunyuan"])
def test_a_film_that_ends_at_once_leaves_from_a_file(make) -> None:
    module, source = make(), noise(1, 4, 2, 3, 2)
    program = lower(module, "decode")
    shape = FilmShape(program, *(1, 2, 3, 2), DeviceProfile(4, 4, 2**16))
    executor = FilmExecutor(program, module)
    mode, sections = [one for one in sections_of(shape) if one[0] != "frames"][-1]
    expected = executor.run(source, as_plan(mode, FilmFootprint(shape, sections, 2**16)))
    heard: list[torch.Tensor] = []
    leaving = as_plan(mode, FilmFootprint(shape, sections, 2**16, frames_leave=True))
    assert executor.run(source, leaving, deliver=heard.append).numel() == 0
    assert len(heard) == 5
    assert torch.equal(torch.cat(heard, 2), expected)


@pytest.mark.parametrize(
    "name", ["wan", "hunyuan", "cogvideox", "mochi", "svd", "kvae video", "ltx 0.9.1", "cosmos"]
)
def test_progress_counts_every_strip_and_stopping_frees_the_memory(name) -> None:
    module, source = MODULES[name](), noise(1, 4, 2, 2, 2)
    program = lower(module, "decode")
    executor = FilmExecutor(program, module)
    given = beside(module, "decode", source)
    for chosen in plans(program, source, DeviceProfile(4, 4, 2**16), 2**16):
        heard: list[tuple[int, int]] = []
        asked: list[int] = []

        def after_some(asked: list[int] = asked, middle: int = chosen.strips // 2) -> bool:
            asked.append(0)
            return len(asked) == middle

        with PeakBytes([module]) as live:
            executor.run(source, chosen, progress=lambda *count, to=heard: to.append(count), **given)
            kept = live.live_bytes  # of what is made once from the weights
            with pytest.raises(Stopped, match="strips done"):
                executor.run(source, chosen, should_stop=after_some, **given)
            gc.collect()
            assert live.live_bytes == kept
        assert heard == [(done, chosen.strips) for done in range(1, chosen.strips + 1)]


@torch.no_grad()
def test_exact_answers_as_the_module_does() -> None:
    module = small_wan(**SHORT)
    exact = hybridge.exact(module, budget="1MiB")
    latents, pixels = source_for("decode", 3), source_for("encode", 3)
    assert exact.why_plain("decode", latents) is None
    assert distance(exact.decode(latents).sample, in_float64(module, "decode", latents)) < 1e-5
    mode = exact.encode(pixels).latent_dist.mode()
    assert distance(mode, in_float64(module, "encode", pixels)[:, :4]) < 1e-5
    with pytest.raises(RequestError, match="NaN or infinity"):
        exact.decode(latents * torch.inf)
    with pytest.raises(RequestError, match="nothing to run"):
        exact.decode(latents[:, :, :0])


@torch.no_grad()
def test_exact_computes_all_frames_at_once_where_the_class_blends_tiles_of_them() -> None:
    module = small_hunyuan()
    module.use_framewise_decoding = module.use_framewise_encoding = True
    latents, pixels = source_for("decode", 5), source_for("encode", 5)
    exact = hybridge.exact(module)
    sample, mode = exact.decode(latents).sample, exact.encode(pixels).latent_dist.mode()
    assert distance(sample, module.decode(latents).sample.double()) > 0.01
    module.use_framewise_decoding = module.use_framewise_encoding = False
    assert distance(sample, in_float64(module, "decode", latents)) < 1e-5
    assert distance(mode, in_float64(module, "encode", pixels)[:, :4]) < 1e-5


@torch.no_grad()
def test_exact_takes_frames_as_items_of_a_batch() -> None:
    module = small_svd()
    latents, pixels = source_for("decode", 3, (2, 3)), source_for("encode", 1, (2, 3))
    exact = hybridge.exact(module, budget="4MiB")
    items = latents.transpose(1, 2).flatten(0, 1)
    made = exact.decode(items, num_frames=3).sample
    judge = in_float64(module, "decode", latents)
    assert distance(made, judge.transpose(1, 2).flatten(0, 1)) < 1e-5
    runner, call = Runner(module), Call(is_bitwise=False, chunk=2)
    parts = [in_float64(module, "decode", part) for part in latents.split(2, dim=2)]
    assert distance(runner.run("decode", latents, modes=("strips",), call=call), torch.cat(parts, 2)) < 1e-5
    mode = exact.encode(pixels[:, :, 0]).latent_dist.mode()
    assert distance(mode, in_float64(module, "encode", pixels)[:, :4, 0]) < 1e-5


@torch.no_grad()
def test_exact_gives_cosmos_latents_as_its_class_does() -> None:
    module, pixels = small_cosmos(), source_for("encode", 2, (2, 2), is_whole=True)
    given = hybridge.exact(module, budget="1MiB").encode(pixels).latent_dist
    assert type(given) is IdentityDistribution
    assert distance(given.sample(), in_float64(module, "encode", pixels)) < 1e-5


@torch.no_grad()
def test_exact_takes_a_timestep() -> None:
    module = small_ltx_timed()
    latents = source_for("decode", 3)
    timestep = beside(module, "decode", latents)["timestep"]
    exact = hybridge.exact(module)
    exact.modes = ("frames",)
    made = exact.decode(latents, timestep).sample
    assert distance(made, in_float64(module, "decode", latents)) < 1e-5
    assert distance(made, exact.decode(latents, timestep / 2).sample.double()) > 0.01


def test_a_plan_for_frames_that_leave_gives_them_early() -> None:
    size: dict[str, Any] = {"frames": 5, "budget_bytes": 2**28}
    runner = Runner(small_wan())
    assert runner.plan("decode", 1, 16, 16, **size).mode == "strips"
    assert runner.plan("decode", 1, 16, 16, frames_leave=True, **size).mode == "frames"
    half = Runner(to(small_wan(), torch.float16))  # whose frames may overflow and are computed again
    assert half.plan("decode", 1, 16, 16, frames_leave=True, **size).mode != "frames"


def test_a_film_that_is_no_whole_number_of_blocks_is_refused() -> None:
    runner = Runner(small_hunyuan_15())
    for frames, height in ((4, 16), (5, 15)):
        with pytest.raises(RequestError, match="takes blocks of"):
            runner.run("encode", noise(1, 3, frames, height, 16), modes=("strips",))


def test_a_budget_that_nothing_fits_is_refused_with_the_least_that_would_do() -> None:
    program = lower(small_wan(**SHORT), "decode")
    how = DeviceProfile(4, 4, 2**16)
    size = {"batch": 1, "frames": 5, "height": 8, "width": 8}
    with pytest.raises(TooLarge) as refused:
        plan_film(program, **size, arithmetic=how, budget_bytes=1000)
    least = refused.value.least_bytes
    assert plan_film(program, **size, arithmetic=how, budget_bytes=least).peak_bytes <= least
