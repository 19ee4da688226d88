from __future__ import annotations

from dataclasses import replace

import pytest

from hybridge.engine import resolve
from hybridge.engine.program.ops import Attend
from hybridge.lab.vae_bench import roofline
from hybridge.lab.vae_bench.cases import Case
from hybridge.lab.vae_bench.subject import program_of


@pytest.mark.parametrize("task", ["decode", "encode"])
@pytest.mark.parametrize("model", ["sd-v1", "taesd"])
def test_the_convolutions_add_up_to_the_program(task, model) -> None:
    spec = resolve(model)
    case = Case(model, task, 256, "float32", "cpu")
    program = program_of(case, spec)
    side = 32 if task == "decode" else 256
    flops = program.flops(side, side)
    attending = sum(count for op, count in zip(program.ops, flops, strict=True) if isinstance(op, Attend))
    found = roofline.convolutions(program, side, side)
    assert sum(convolution.flops for convolution in found) + attending == sum(flops)
    assert (attending > 0) == (model == "sd-v1")
    kinds = [(c.in_channels, c.out_channels, c.kernel, c.stride) for c in found]
    assert len(set(kinds)) == len(kinds)


def test_the_convolutions_of_a_film_add_up_to_its_program() -> None:
    case = Case("hunyuan-video", "decode", 256, "float32", "cpu", frames=5)
    program = program_of(case, resolve(case.model))
    flops = program.flops(32, 32, 2)
    attending = sum(count for op, count in zip(program.ops, flops, strict=True) if isinstance(op, Attend))
    found = roofline.convolutions(program, 32, 32, 2)
    assert sum(convolution.flops for convolution in found) + attending == sum(flops)


def test_a_shape_is_kept_with_its_largest_picture() -> None:
    program = program_of(Case("sd-v1", "decode", 256, "float32", "cpu"), resolve("sd-v1"))
    found = {(c.in_channels, c.out_channels, c.kernel): c for c in roofline.convolutions(program, 32, 32)}
    assert (found[512, 512, 3].height, found[512, 512, 3].width) == (64, 64)
    assert (found[128, 128, 3].height, found[128, 128, 3].width) == (256, 256)
    # ×2 then 3×3 counts as four 2×2 convolutions of the small picture.
    assert (found[256, 256, 2].height, found[256, 256, 2].flops) == (128, 4 * 2 * 128 * 128 * 4 * 256 * 256)


def test_speeds_are_measured(case) -> None:
    case = replace(case, task="encode")
    measured = roofline.measure(case, resolve(case.model))
    assert measured["attention_flops"] > 0
    assert measured["matmul_flops_per_s"] > 0
    assert sum(one["flops"] for one in measured["convolutions"]) + measured["attention_flops"] == measured["flops"]
    for one in measured["convolutions"]:
        assert set(one["flops_per_s"]) == {"cached", "large"}
        assert min(one["flops_per_s"].values()) > 0
