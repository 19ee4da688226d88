"""Plans of films at full size, without weights: arithmetic only."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from films import small_magvit, small_svd

from hybridge.engine.planning.conv_algorithms import DeviceProfile
from hybridge.engine.planning.courses import Course, Section, is_stored
from hybridge.engine.planning.film_plan import plan_film
from hybridge.engine.planning.film_shape import FilmShape
from hybridge.engine.planning.plan import WITHIN_ROUNDING, Plan
from hybridge.engine.program.folding import folded
from hybridge.engine.program.lowering import lower, skeleton
from hybridge.engine.program.program import Program
from hybridge.engine.vae_adapters import adapter_of
from hybridge.engine.whole_cost import whole_cost
from hybridge.errors import RequestError, TooLarge

GIB = 2**30
ON_CPU = DeviceProfile(2, 4, 16 * 2**20, 64)
WAN = skeleton("AutoencoderKLWan", {})
DECODER, ENCODER = lower(WAN, "decode"), lower(WAN, "encode")


def planned(program: Program, frames: int, height: int, width: int, **options: Any) -> Plan:
    """Plan a film of so many frames of latents."""
    if program.task == "encode":
        frames, height, width = 4 * frames - 3, 8 * height, 8 * width
    options = {"arithmetic": ON_CPU} | options
    return plan_film(program, batch=1, frames=frames, height=height, width=width, **options)


def test_a_decoder_and_an_encoder_have_the_frames_that_diffusers_gives() -> None:
    assert [DECODER.lengths(count)[-1] for count in (1, 2, 3, 21)] == [1, 5, 9, 81]
    assert [ENCODER.lengths(count)[-1] for count in (1, 4, 5, 8, 9, 81)] == [1, 1, 2, 2, 3, 21]


def test_work_is_what_the_module_multiplies() -> None:
    """TFLOP of a steady latent frame at 480×832: convolutions and attention."""
    first, second = (sum(DECODER.flops(60, 104, frames)) for frames in (20, 21))
    assert second - first == pytest.approx(13.0e12, rel=0.05)


def test_one_frame_is_a_picture_with_a_third_of_the_work() -> None:
    picture = folded(DECODER)
    assert sum(picture.flops(128, 128)) == pytest.approx(4.28e12, rel=0.01)
    assert not picture.is_film
    assert len(picture.ops) == len(DECODER.ops) - 2, "two convolutions over time pass frame 0 on"


@pytest.mark.parametrize(("frames", "height", "width", "whole"), [(21, 60, 104, 4.0), (31, 90, 160, 9.3)])
def test_without_a_budget_a_cpu_is_frugal(frames, height, width, whole) -> None:
    chosen = planned(DECODER, frames, height, width)
    assert chosen.peak_bytes <= 0.4 * whole * GIB


@pytest.mark.parametrize("program", [DECODER, ENCODER], ids=["decode", "encode"])
def test_rows_of_all_frames_take_least(program) -> None:
    """As in the films that are compared with diffusers: 17 frames of 320×320."""
    options: dict[str, Any] = {"arithmetic": DeviceProfile(4, 4, 2**24, 64), "budget_bytes": int(0.35 * GIB)}
    assert planned(program, 5, 40, 40, **options).mode == "rows"
    with pytest.raises(TooLarge) as refused:
        planned(program, 5, 40, 40, modes=("frames",), **options)
    assert refused.value.least_bytes > 0.8 * GIB


def test_a_smaller_budget_takes_another_schedule() -> None:
    modes = [planned(DECODER, 21, 60, 104, budget_bytes=int(gib * GIB)).mode for gib in (13, 3.5, 1.2)]
    assert modes == ["strips", "frames", "rows"]


def test_five_seconds_of_720p_fit_in_3_gib() -> None:
    assert planned(DECODER, 31, 90, 160, budget_bytes=3 * GIB).mode == "rows"


def test_without_a_budget_a_film_is_lean_where_that_adds_few_multiplications() -> None:
    program = lower(skeleton("AutoencoderKLHunyuanVideo", {}), "decode")
    chosen, strips = (planned(program, 5, 40, 40, modes=modes) for modes in (WITHIN_ROUNDING, ("strips",)))
    assert (chosen.mode, strips.mode) == ("lean", "strips")
    assert chosen.peak_bytes < 0.7 * strips.peak_bytes
    assert chosen.flops < 1.25 * strips.flops


def test_where_frames_leave_the_film_takes_no_memory() -> None:
    size: dict[str, Any] = {"frames": 31, "height": 90, "width": 160}
    film = 121 * 3 * 720 * 1280 * 2
    kept, left = (planned(DECODER, **size, modes=("frames",), frames_leave=leave) for leave in (False, True))
    assert kept.peak_bytes - left.peak_bytes == pytest.approx(film, rel=0.05)
    in_file = planned(DECODER, **size, budget_bytes=2 * GIB, frames_leave=True)
    assert (in_file.mode, in_file.parked_bytes) == ("rows", film)


def test_five_seconds_of_720p_of_hunyuan_video_fit_in_24_gib() -> None:
    program = lower(skeleton("AutoencoderKLHunyuanVideo", {}), "decode")
    chosen = planned(program, 31, 90, 160, budget_bytes=24 * GIB)
    assert chosen.mode == "spill"
    assert chosen.parked_bytes > 70 * GIB
    with pytest.raises(TooLarge):
        planned(program, 31, 90, 160, budget_bytes=24 * GIB, modes=("strips", "frames", "rows"))


def test_what_does_not_fit_names_the_least_that_does() -> None:
    with pytest.raises(TooLarge, match="at least") as refused:
        planned(DECODER, 21, 60, 104, budget_bytes=GIB // 4)
    least = refused.value.least_bytes
    assert planned(DECODER, 21, 60, 104, budget_bytes=least).peak_bytes <= least


@pytest.mark.parametrize(("frames", "height"), [(0, 8), (3, 0), (-1, 8)])
def test_nothing_to_run_is_refused(frames, height) -> None:
    with pytest.raises(RequestError, match="nothing to run"):
        plan_film(DECODER, batch=1, frames=frames, height=height, width=8, arithmetic=ON_CPU)


@pytest.mark.parametrize(
    ("axis", "slabs", "of_steps"),
    [("frames", 1, 1), ("frames", 3, 1), ("rows", 1, 1), ("rows", 7, 1), ("rows", 16, 1), ("rows", 8, 2)],
)
def test_a_course_makes_every_slab_once_and_from_what_exists(axis, slabs, of_steps) -> None:
    shape = FilmShape(DECODER, 1, 4, 5, 3, ON_CPU)
    first = 0 if axis == "frames" else 5  # after attention
    section = Section(first, len(DECODER.ops), axis, slabs, of_steps)
    course = Course(DECODER, section, shape.extents)
    side = 0 if axis == "frames" else 1
    values = [index + 1 for index in section.ops]
    kept = dict.fromkeys(values, 0)
    for made, kept_from in zip(course.made, course.kept_from, strict=True):
        for index in section.ops:
            op = DECODER.ops[index]
            begin, end = made[op.target]
            if begin < end and op.source in made:
                reads = op.frames_read if axis == "frames" else op.rows_read
                assert max(0, reads(begin, end)[0]) >= kept[op.source], "dropped too early"
                assert min(reads(begin, end)[1], shape.extents[op.source][side]) <= made[op.source][1]
        kept = kept_from
    for value in values:
        spans = [made[value] for made in course.made]
        assert spans[0][0] == 0
        assert spans[-1][1] == shape.extents[value][side]
        assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
        assert is_stored(DECODER, section, value) == (value == values[-1])


@pytest.mark.parametrize(
    ("name", "frames", "task"),
    [
        ("AutoencoderKLHunyuanVideo15", 3, "decode"),
        ("AutoencoderKLCogVideoX", 4, "decode"),
        ("AutoencoderKLCogVideoX", 5, "decode"),
        ("AutoencoderKLWan", 3, "encode"),
        ("AutoencoderKLCosmos", 3, "decode"),
        ("AutoencoderKLCosmos", 3, "encode"),
    ],
)
def test_the_plain_forward_takes_what_its_layers_keep_alive(name, frames, task) -> None:
    module = torch.nn.Module.to(skeleton(name, {}), torch.bfloat16)
    program = lower(module, task)
    length = frames if task == "decode" else lower(module, "decode").lengths(frames)[-1]
    side = 8 if task == "decode" else 64
    planned_bytes = FilmShape(program, 1, length, side, side, ON_CPU).whole_peak()
    shape = (1, program.channels[0], length, side, side)
    counted = whole_cost(module, adapter_of(module), task, shape, is_bitwise=False)
    assert planned_bytes == pytest.approx(counted.peak_bytes, rel=0.06)


@pytest.mark.parametrize("task", ["decode", "encode"])
@pytest.mark.parametrize("make", [small_svd, small_magvit])
def test_the_plain_forward_of_frames_apart(make, task) -> None:
    """Of frames that are items of a batch, and of convolutions that make one frame after another."""
    module = torch.nn.Module.to(make(), "meta")
    program = lower(module, task)
    shape = (1, program.channels[0], *((4, 8, 8) if task == "decode" else (13, 64, 64)))
    planned_bytes = FilmShape(program, 1, *shape[2:], DeviceProfile(4, 4, 2**24)).whole_peak()
    counted = whole_cost(module, adapter_of(module), task, shape, is_bitwise=False)
    assert planned_bytes == pytest.approx(counted.peak_bytes, rel=0.08)
