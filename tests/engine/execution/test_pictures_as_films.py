"""VAEs of pictures that run as films of one frame, against the plain forward in float64."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import EncoderOutput
from films import distance, in_float64, noise, plainly, small_deep_compression, small_hunyuan_image, small_kvae, to
from schedules import plans

import hybridge
from hybridge.engine.execution.film_executor import FilmExecutor
from hybridge.engine.planning.conv_algorithms import DeviceProfile
from hybridge.engine.planning.film_shape import FilmShape
from hybridge.engine.program.lowering import lower, skeleton
from hybridge.engine.runner import Runner
from hybridge.engine.vae_adapters import adapter_of
from hybridge.engine.whole_cost import whole_cost
from hybridge.errors import CannotLower, RequestError, Stopped
from hybridge.lab.harness.memory import PeakBytes

#: Between channels and positions instead of strides and nearest ×2, and no level of the size of pictures.
SHUFFLED: dict[str, Any] = {
    **{"downsample_block_type": "pixel_unshuffle", "upsample_block_type": "pixel_shuffle"},
    **{f"{half}_layers_per_block": (0, 1, 1) for half in ("encoder", "decoder")},
    **{"encoder_out_shortcut": False, "decoder_in_shortcut": False},
}

#: The config of Sana's own.
SANA: dict[str, Any] = {
    **{f"{half}_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3 for half in ("encoder", "decoder")},
    **{"downsample_block_type": "conv", "upsample_block_type": "interpolate", "scaling_factor": 0.41407},
}

MODULES = {
    "hunyuan image": small_hunyuan_image,
    "kvae": small_kvae,
    "sana": small_deep_compression,
    "sana, shuffled": lambda seed=0: small_deep_compression(seed, **SHUFFLED),
}

TASKS = ("decode", "encode")


def picture(task: str, latents: tuple[int, int] = (5, 3), seed: int = 0) -> torch.Tensor:
    height, width = latents
    channels, side = (4, 1) if task == "decode" else (3, 4)
    return noise(1, channels, side * height, side * width, seed=seed).clamp(-1, 1)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", MODULES)
def test_every_schedule_gives_the_right_answer(name, task) -> None:
    """Sana's attends to so few positions in the second picture that the class has another formula."""
    module = to(MODULES[name](), torch.float64)
    program = lower(module, task)
    executor = FilmExecutor(program, module)
    for source in (picture(task), picture(task, (2, 1))):
        judge = in_float64(module, task, source)
        for strip_bytes in (2**16, 1):
            how = DeviceProfile(8, 8, strip_bytes, transform_from=1)
            for chosen in plans(program, source[:, :, None].double(), how, strip_bytes):
                made = executor.run(source[:, :, None].double(), chosen)[:, :, 0]
                assert distance(made, judge) < 1e-12, chosen.mode


@pytest.mark.parametrize("name", MODULES)
def test_a_runner_takes_pictures(name) -> None:
    module = to(MODULES[name](), torch.float64)
    runner = Runner(module)
    assert not runner.takes_films
    for task in TASKS:
        source = torch.cat([picture(task, seed=seed) for seed in range(2)]).double()
        judge = in_float64(module, task, source)
        for budget_bytes in (None, 2**20):
            made = runner.run(task, source, modes=("strips", "lean"), budget_bytes=budget_bytes)
            assert made.shape == judge.shape
            assert distance(made, judge) < 1e-12
    with pytest.raises(RequestError, match="takes blocks of"):
        runner.run("encode", noise(1, 3, 18, 12).double(), modes=("strips",))


@pytest.mark.parametrize(
    ("dtype", "how", "times"),
    [
        (torch.float32, DeviceProfile(4, 4, 2**16), 1.3),
        (torch.bfloat16, DeviceProfile(2, 4, 2**16, transform_from=1), 1.0),
    ],
    ids=["float32", "bfloat16"],
)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["sana", "sana, shuffled"])
def test_no_further_from_float64_than_the_plain_forward(name, task, dtype, how, times) -> None:
    """Over three models."""
    ours: dict[int, float] = {}
    plain = 0.0
    for seed in range(3):
        module, source = to(MODULES[name](seed), dtype), picture(task, (4, 3), seed).to(dtype)
        judge, program = in_float64(module, task, source), lower(module, task)
        plain += distance(plainly(module, task, source), judge)
        for number, chosen in enumerate(plans(program, source[:, :, None], how, 2**16)):
            made = FilmExecutor(program, module).run(source[:, :, None], chosen)[:, :, 0]
            ours[number] = ours.get(number, 0.0) + distance(made, judge)
    assert max(ours.values()) <= times * plain


@pytest.mark.parametrize("task", TASKS)
def test_peak_is_what_torch_allocates(task) -> None:
    module = small_deep_compression(**SHUFFLED)
    source = picture(task, (24, 16))[:, :, None]
    program = lower(module, task)
    executor = FilmExecutor(program, module)
    for chosen in plans(program, source, DeviceProfile(4, 4, 2**17), 2**17):
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


def test_progress_and_stopping() -> None:
    module, source = small_deep_compression(), picture("decode")[:, :, None]
    program = lower(module, "decode")
    executor = FilmExecutor(program, module)
    for chosen in plans(program, source, DeviceProfile(4, 4, 2**16), 2**15):
        heard: list[tuple[int, int]] = []
        executor.run(source, chosen, progress=lambda *count, to=heard: to.append(count))
        assert heard == [(done, chosen.strips) for done in range(1, chosen.strips + 1)]
        with PeakBytes([module]) as live:
            live.count(source)
            asked = iter(range(chosen.strips))
            with pytest.raises(Stopped, match="strips done"):
                executor.run(
                    source,
                    chosen,
                    should_stop=lambda asked=asked, middle=chosen.strips // 2: next(asked) == middle,
                )
            gc.collect()
            assert live.live_bytes == source.nbytes


@torch.no_grad()
def test_exact_answers_as_the_module_does() -> None:
    module = small_deep_compression()
    exact = hybridge.exact(module, budget="1MiB")
    latents, pixels = picture("decode"), picture("encode")
    assert exact.why_plain("decode", latents) is exact.why_plain("encode", pixels) is None
    assert distance(exact.decode(latents).sample, in_float64(module, "decode", latents)) < 1e-5
    encoded, judge = exact.encode(pixels), in_float64(module, "encode", pixels)
    assert type(encoded) is EncoderOutput
    assert distance(encoded.latent, judge) < 1e-5
    assert distance(exact.encode(pixels, return_dict=False)[0], judge) < 1e-5


def test_batch_norms_are_refused_by_name() -> None:
    module = small_deep_compression(decoder_norm_types="batch_norm")
    with pytest.raises(CannotLower, match=r"expected an RMSNorm|expected an RMS norm"):
        lower(module, "decode")
    assert lower(module, "encode").ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("task", TASKS)
def test_the_plain_forward_takes_what_its_layers_keep_alive(task, dtype) -> None:
    module = torch.nn.Module.to(skeleton("AutoencoderDC", SANA), dtype)
    program, side = lower(module, task), 8 if task == "decode" else 256
    shape = (1, program.channels[0], side, side)
    planned = FilmShape(program, 1, 1, side, side, DeviceProfile(dtype.itemsize, 4, 2**24)).whole_peak()
    counted = whole_cost(module, adapter_of(module), task, shape, is_bitwise=False)
    assert planned == pytest.approx(counted.peak_bytes, rel=0.02)
