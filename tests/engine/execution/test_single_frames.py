"""Films of one frame, which run as pictures, against the plain forward in float64."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from films import (
    distance,
    in_float64,
    noise,
    plainly,
    small_hunyuan,
    small_hunyuan_15,
    small_qwen,
    small_wan,
    small_wan_22,
    source_for,
    to,
)

import hybridge
from hybridge.engine.execution.executor import Executor
from hybridge.engine.planning.conv_algorithms import DeviceProfile
from hybridge.engine.planning.plan import plan
from hybridge.engine.program.folding import folded
from hybridge.engine.program.lowering import lower
from hybridge.errors import CannotLower, RequestError, TooLarge

MODULES = {
    "hunyuan": small_hunyuan,
    "wan": small_wan,
    "qwen": small_qwen,
    "time in all blocks": lambda: small_wan(dim_mult=[1, 2, 2], temperal_downsample=[True, True]),
}


def in_strips(module: Any, task: str, source: torch.Tensor, how: DeviceProfile) -> torch.Tensor:
    program = folded(lower(module, task))
    batch, _, _, height, width = source.shape
    modes = ("strips", "lean", "recompute")
    chosen = plan(program, batch=batch, height=height, width=width, arithmetic=how, modes=modes)
    return Executor(program, module).run(source[:, :, 0], chosen)[:, :, None]


@pytest.mark.parametrize("task", ["decode", "encode"])
@pytest.mark.parametrize("name", MODULES)
def test_float64_gives_the_right_answer(name, task) -> None:
    module = to(MODULES[name](), torch.float64)
    source = source_for(task, 1).double()
    judge = in_float64(module, task, source)
    for strip_bytes in (2**30, 2**13, 1):
        for transform_from in (None, 1):
            made = in_strips(module, task, source, DeviceProfile(8, 8, strip_bytes, transform_from))
            assert distance(made, judge) < 1e-12


@pytest.mark.parametrize(
    ("dtype", "how", "times"),
    [
        (torch.float32, DeviceProfile(4, 4, 2**13), 1.25),  # 0.8 to 1.2, by width
        (torch.bfloat16, DeviceProfile(2, 4, 2**13, transform_from=1), 1.0),
        (torch.bfloat16, DeviceProfile(2, 2, 2**13), 1.1),
    ],
    ids=["float32", "bfloat16 widened", "bfloat16"],
)
@pytest.mark.parametrize("task", ["decode", "encode"])
def test_no_further_from_float64_than_the_plain_forward(task, dtype, how, times) -> None:
    """Over several models, for one model's rounding is a draw."""
    ours = plain = 0.0
    for seed in range(3):
        module = to(small_wan(seed, temperal_downsample=[True, True], dim_mult=[1, 2, 2]), dtype)
        source = source_for(task, 1, (7, 6), seed=seed).to(dtype)
        judge = in_float64(module, task, source)
        ours += distance(in_strips(module, task, source, how), judge)
        plain += distance(plainly(module, task, source), judge)
    assert ours <= times * plain


@torch.no_grad()
def test_exact_answers_as_the_module_does() -> None:
    module = small_qwen()
    latents = source_for("decode", 1)
    exact = hybridge.exact(module)
    assert exact.why_plain("decode", latents) is None
    sample = exact.decode(latents).sample
    assert sample.shape == (1, 3, 1, 40, 24)
    assert distance(sample, in_float64(module, "decode", latents)) < 1e-5
    pixels = source_for("encode", 1)
    mode = exact.encode(pixels).latent_dist.mode()
    assert distance(mode, in_float64(module, "encode", pixels)[:, :4]) < 1e-5
    with pytest.raises(RequestError, match="frames, height, width"):
        exact.decode(latents[:, :, 0])


@torch.no_grad()
@pytest.mark.parametrize("make", [small_hunyuan_15, small_wan_22])
def test_what_moves_numbers_between_channels_and_positions_stays_a_film_of_one_frame(make) -> None:
    module = make()
    latents, pixels = source_for("decode", 1), source_for("encode", 1, is_whole=True)
    exact = hybridge.exact(module, budget="1MiB")
    assert exact.why_plain("decode", latents) is None
    assert exact.plan("decode", 1, 5, 3).mode == "strips"
    assert distance(exact.decode(latents).sample, in_float64(module, "decode", latents)) < 1e-5
    mode = exact.encode(pixels).latent_dist.mode()
    assert distance(mode, in_float64(module, "encode", pixels)[:, :4]) < 1e-5


def test_another_activation_is_refused_by_name() -> None:
    module = small_wan()
    module.decoder.nonlinearity = torch.nn.ReLU()
    with pytest.raises(CannotLower, match="expected SiLU"):
        lower(module, "decode")


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
@torch.no_grad()
def test_a_picture_so_small_that_streaming_costs_nothing(share: float) -> None:
    """One strip is computed once whether its value is kept or not: the planner divides by no work."""
    vae, z = small_qwen(base_dim=4, z_dim=16), noise(1, 16, 1, 8, 8)
    exact = hybridge.exact(vae)
    size = 1, 8, 8, 1
    exact.budget_bytes = int(exact.plan("decode", *size).peak_bytes * share)
    with contextlib.suppress(TooLarge):
        assert distance(exact.decode(z).sample, vae.decode(z).sample) < 1e-5
