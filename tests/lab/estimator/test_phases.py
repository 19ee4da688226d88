"""The estimate: against the guide's figures, and phase by phase."""

from __future__ import annotations

import pytest

from hybridge.errors import RequestError, TooLarge
from hybridge.lab.estimator.effects import EFFECTS
from hybridge.lab.estimator.guide import Figure, compared
from hybridge.lab.estimator.phases import estimate
from hybridge.lab.estimator.shapes import PIPELINES, shape_named
from hybridge.lab.estimator.types import Phase, Setup, parse_stack
from hybridge.lab.techniques.catalogue import TECHNIQUES


def phases(*stack: str, pipeline: str = "sdxl", **more: object) -> dict[str, Phase]:
    made = estimate(Setup(pipeline, stack, **more))  # type: ignore[arg-type] # Setup's own fields
    return {phase.name: phase for phase in made.phases}


@pytest.mark.parametrize("one", compared(), ids=lambda one: one.title)
def test_the_guides_figures_come_out(one: Figure) -> None:
    if one.estimate.is_lower_bound:
        assert one.off <= 0.001
    else:
        assert abs(one.off) < 0.1


# GB, as they were first counted with another program: techniques without any allowance.
@pytest.mark.parametrize(
    ("stack", "gb"),
    [
        ("baseline", 17.10),
        ("fp16", 10.33),
        ("fp16+vae-fp16-fix", 8.55),
        ("fp16+tiny-vae", 7.18),
        ("fp16+batch-processing", 5.63),
        ("fp16+batch-processing+tiny-vae", 5.47),
        ("fp16+sequential-offload+vae-fp16-fix", 1.61),
        ("fp16+sequential-offload+tiny-vae", 0.40),
    ],
)
def test_without_the_allowance_it_is_what_tensors_take(stack: str, gb: float) -> None:
    assert estimate(Setup("sdxl", parse_stack(stack))).counted_bytes / 1e9 == pytest.approx(gb, abs=0.006)


def test_components_of_sdxl() -> None:
    made = estimate(Setup("sdxl", ("fp16",)))
    files = {title: round(nbytes / 1e9, 3) for title, nbytes in made.files}
    assert files == {
        "CLIP ViT-L text encoder": 0.246,
        "CLIP ViT-bigG text encoder": 1.389,
        "UNet": 5.135,
        "VAE": 0.167,
    }
    denoise, decode = made.phases[1:]
    assert denoise.flops == 50 * 13_522_472_796_160
    assert decode.flops / 1e12 == pytest.approx(10.47, abs=0.01)
    assert denoise.activations_bytes / 1e9 == pytest.approx(0.33, abs=0.005)
    assert decode.activations_bytes / 1e9 == pytest.approx(3.22, abs=0.005)


def test_every_technique_of_the_catalogue_has_an_effect() -> None:
    assert set(TECHNIQUES) <= set(EFFECTS)


def test_a_pipeline_has_the_name_of_its_vae_too() -> None:
    assert [shape_named(name).name for name in ("flux", "sd-v1", "sdxl")] == ["flux-dev", "sd15", "sdxl"]
    assert estimate(Setup("flux")).setup.pipeline == "flux-dev"


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_pipeline_is_estimated(pipeline: str) -> None:
    made = estimate(Setup(pipeline, ("fp16", "model-offload")))
    denoise = made.phases[1]
    assert [title for title, _ in denoise.weights] == [PIPELINES[pipeline].denoiser.title]
    assert made.peak_bytes < estimate(Setup(pipeline, ("fp16",))).peak_bytes


def test_t5_keeps_a_part_in_float32_under_float16_alone() -> None:
    in_half = estimate(Setup("sd3", ("bf16",))).files
    in_float16 = estimate(Setup("sd3", ("fp16",))).files
    assert dict(in_float16)["T5 v1.1 XXL encoder"] - dict(in_half)["T5 v1.1 XXL encoder"] == 2 * 24 * 10240 * 4096


def test_ending_guidance_halves_what_is_left() -> None:
    # The guide's callback comes after its step: 76 of 100 at 50 steps.
    whole, half = phases("fp16")["denoise"], phases("fp16", "cfg-cutoff-50")["denoise"]
    assert half.flops / whole.flops == pytest.approx(0.76)
    assert half.peak_bytes == whole.peak_bytes


def test_the_refiner_takes_over_the_last_steps() -> None:
    base, both = phases("fp16"), phases("fp16", "refiner-ensemble-80")
    assert both["denoise"].flops == base["denoise"].flops * 40 // 50
    assert both["refine"].flops == 10 * 14_572_021_874_688
    assert both["denoise"].weights_bytes - base["denoise"].weights_bytes == 2 * 2_259_526_660
    assert "refine" not in base


def test_a_single_step_that_the_refiner_makes_leaves_the_base_none() -> None:
    one = phases("fp16", "deepcache", "refiner-ensemble-80", steps=1)
    assert (one["denoise"].flops, one["refine"].flops) == (0, 14_572_021_874_688)


def test_narrow_weights_and_fused_projections() -> None:
    wide, narrow = phases("fp16")["denoise"], phases("fp16", "fp8-storage")["denoise"]
    assert wide.weights_bytes - narrow.weights_bytes == 2_232_647_680 + 333_232_640
    assert phases("fp16", "fused-qkv")["denoise"].weights_bytes - wide.weights_bytes == 2 * 647_987_200


def test_a_step_cache_and_fewer_tokens_save_work_where_it_was_counted() -> None:
    whole = phases("fp16")["denoise"].flops
    assert phases("fp16", "deepcache")["denoise"].flops / whole == pytest.approx((17 + 33 * 0.2 / 13.52) / 50)
    assert phases("fp16", "tome-all")["denoise"].flops / whole == pytest.approx(11.60 / 13.52)
    assert phases("fp16", "tome")["denoise"].flops == whole


def test_a_batch_is_decoded_at_once_unless_it_is_sliced() -> None:
    one = phases("fp16", pipeline="sd15")["decode"]
    four = phases("fp16", pipeline="sd15", batch=4)["decode"]
    sliced = phases("fp16", "vae-slicing", pipeline="sd15", batch=4)["decode"]
    assert four.activations_bytes == pytest.approx(4 * one.activations_bytes, rel=0.01)
    assert sliced.activations_bytes == one.activations_bytes + 3 * 3 * 512 * 512 * 2
    assert sliced.workspace_bytes == one.workspace_bytes
    assert sliced.flops == four.flops == 4 * one.flops


def test_the_vaes_own_tiles_do_nothing_where_they_do_not_begin() -> None:
    assert phases("fp16", "vae-tiling")["decode"] == phases("fp16")["decode"]


def test_a_remote_vae_leaves_nothing_to_decode_with() -> None:
    decode = phases("fp16", "model-offload", "remote-vae")["decode"]
    assert decode.weights == ()
    assert decode.activations_bytes == 3 * 1024 * 1024 * 4  # the pipeline's VAE decodes in float32
    assert decode.workspace_bytes == 0


def test_the_exact_decoder_keeps_its_budget_or_refuses() -> None:
    setup = Setup("sdxl", ("fp16", "vae-fp16-fix", "exact-vae"), decode_budget_bytes=10**9)
    made = estimate(setup)
    assert made.plan is not None
    assert made.phases[-1].activations_bytes == made.plan.peak_bytes <= 10**9
    with pytest.raises(TooLarge, match="does not fit the budget"):
        estimate(Setup("sdxl", ("fp16", "exact-vae"), decode_budget_bytes=2**20))


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (Setup("sdxxl"), "unknown pipeline.*Try: sdxl"),
        (Setup("sdxl", ("tini-vae",)), "unknown technique.*Try: tiny-vae"),
        (Setup("sdxl", ("fp16", "bf16")), "exclude each other: saw fp16 and bf16"),
        (Setup("sdxl", ("model-offload", "group-offload")), "exclude each other"),
        (Setup("sdxl", height=1000, width=1024), "multiple of 16"),
        (Setup("sdxl", height=-16, width=16), "not a size"),
        (Setup("sdxl", height=16384, width=16384), "more than is estimated"),
        (Setup("sdxl", batch=0), "not a number of batch"),
        (Setup("sdxl", batch=65), "saw 65 × 1024×1024"),
        (Setup("sdxl", steps=0), "not a number of steps"),
        (Setup("sd15", refiner=True), "has no refiner"),
        (Setup("sd3", ("attention-vanilla",)), "are a UNet's"),
        (Setup("flux-dev", ("cfg-cutoff-50",)), "no guidance to end"),
    ],
)
def test_what_cannot_be_estimated_is_refused(setup: Setup, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        estimate(setup)


def test_what_is_left_out_is_said() -> None:
    said = " ".join(estimate(Setup("sdxl", ("fp16", "compile", "group-offload"))).left_out)
    for part in ("CUDA context", "allowance", "lower bound", "compile: a compiler plans its own buffers"):
        assert part in said
