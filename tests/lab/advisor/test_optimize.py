"""``hybridge.optimize`` on the tiny pipeline: what it reports, what it leaves, and its way back.

What no row of the catalogue does on purpose (showing nothing, failing half-way, spoiling the picture) stand-ins do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hybridge
from hybridge.errors import ClientError, EngineFailure, RequestError
from hybridge.lab.advisor.presets import PRESETS
from hybridge.lab.techniques import catalogue
from hybridge.lab.techniques.evidence import CallLog, counted, watching
from hybridge.lab.techniques.pipeline_context import PipelineContext
from hybridge.lab.techniques.technique import Applied, Missing, Proof, Stage, Technique

SEEN = Proof(True, "seen")
NOTHING = Proof(False, "nothing was seen")

Put = Callable[..., Technique]


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts a row into the catalogue for one test."""

    def put_row(
        name: str, apply: Callable[[PipelineContext], Applied], stage: Stage = "freeu", **more: Any
    ) -> Technique:
        row = Technique(
            name=name,
            title=name.title(),
            claim="",
            source="",
            exactness="bitwise",
            stage=stage,
            apply=apply,
            **more,
        )
        monkeypatch.setitem(catalogue.TECHNIQUES, name, row)
        return row

    return put_row


def inert(_: PipelineContext) -> Applied:
    return Applied(watching(lambda: NOTHING), lambda: None)


def doubled(context: PipelineContext) -> Applied:
    """The UNet's last bias, one more."""
    bias = context.denoiser.conv_out.bias
    before = bias.data
    bias.data = before + 1

    def undo() -> None:
        bias.data = before

    return Applied(watching(lambda: SEEN), undo)


def picture(pipe: Any, **arguments: Any) -> Any:
    whole = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "np", **arguments}
    return pipe("a cat", generator=torch.Generator().manual_seed(0), **whole).images


def test_it_says_what_it_did_and_takes_it_back_to_the_bit(pipe: Any) -> None:
    before = picture(pipe)
    optimised = hybridge.optimize(pipe, techniques=["channels-last"])
    (done,) = optimised.done
    assert (done.technique, done.outcome) == ("channels-last", "worked")
    assert done.evidence is not None
    assert "kernels have their channels last" in done.evidence
    assert pipe.unet.conv_out.weight.stride(1) == 1
    assert str(optimised).splitlines()[0] == "channels-last on cpu"
    assert str(optimised).splitlines()[1].split()[:2] == ["channels-last", "worked"]
    assert repr(optimised) == "<Optimised for channels-last on cpu: channels-last worked>"

    assert optimised.undo() == ()
    assert np.array_equal(picture(pipe), before)
    assert optimised.undo() == ()


def test_proving_leaves_nothing_behind(pipe: Any) -> None:
    picture(pipe)  # so that whatever a first call sets is there
    fresh_seed, attributes = torch.random.get_rng_state(), dict(vars(pipe))
    timesteps = pipe.scheduler.timesteps.clone()
    with hybridge.optimize(pipe, techniques=["channels-last"]):
        assert torch.equal(torch.random.get_rng_state(), fresh_seed)
        assert pipe._progress_bar_config == {"disable": True}
        assert pipe.scheduler is attributes["scheduler"]
        assert torch.equal(pipe.scheduler.timesteps, timesteps)
        assert not pipe.unet._forward_pre_hooks
        assert not pipe.unet._forward_hooks
    assert set(vars(pipe)) == set(attributes)


def test_a_pipeline_that_never_showed_a_bar_has_no_setting_for_it_afterwards(pipe: Any) -> None:
    del pipe._progress_bar_config
    with hybridge.optimize(pipe, techniques=["channels-last"]):
        assert not hasattr(pipe, "_progress_bar_config")


def test_without_proof_nothing_is_made_and_nothing_claimed(pipe: Any) -> None:
    with CallLog(pipe.unet) as calls:
        optimised = hybridge.optimize(pipe, techniques=["channels-last"], prove=False)
    assert len(calls) == 0
    assert optimised.done[0].outcome is None
    assert "in force  not proven" in str(optimised)


def test_what_cannot_run_is_reported_and_the_rest_stays(pipe: Any, put: Put) -> None:
    def broken(_: PipelineContext) -> Applied:
        raise ValueError("no such layer\n" + "in all of this " * 50)

    put("gone", inert, why_missing=lambda _: Missing("dead", "last seen in 2024", instead="compile"))
    put("broken", broken)
    put("inert", inert)
    optimised = hybridge.optimize(pipe, techniques=["channels-last", "gone", "broken", "inert"])
    assert [(done.technique, done.outcome) for done in optimised.done] == [
        ("channels-last", "worked"),
        ("gone", "dead"),
        ("broken", "failed"),
        ("inert", "no effect"),
    ]
    assert "last seen in 2024; instead: compile" in str(optimised)
    assert "ValueError: no such layer in all of this" in str(optimised)
    assert str(optimised).count("\n") == 4
    assert len(str(optimised)) < 600
    assert optimised.done[3].evidence == "nothing was seen"


def test_what_shows_nothing_in_a_small_picture_is_asked_again_at_the_pipelines_own_size(
    pipe: Any, put: Put
) -> None:
    sizes: list[int] = []

    def above(side: int) -> Callable[[PipelineContext], Applied]:
        def apply(context: PipelineContext) -> Applied:
            def look() -> Proof:
                return Proof(sizes[-1] >= side, f"{sizes[-1]} latents")

            return Applied(watching(look), lambda: None)

        return apply

    pipe.unet.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append((*args, *kwargs.values())[0].shape[-1]), with_kwargs=True
    )
    pipe.default_sample_size = 24  # latents; the small picture has 16
    put("above-16", above(17))
    put("above-0", above(0))
    optimised = hybridge.optimize(pipe, techniques=["above-0", "above-16"])
    assert [(done.outcome, done.evidence) for done in optimised.done] == [
        ("worked", "16 latents"),
        ("worked", "24 latents"),
    ]
    assert sizes == [16, 16, 24, 24]


def test_what_is_compiled_meets_no_size_but_its_own(pipe: Any, put: Put) -> None:
    pipe.default_sample_size = 24

    def judge(log: CallLog) -> Proof:
        return Proof(False, f"{len(log)} forwards")

    put(
        "compiled", lambda context: Applied(counted(lambda: context.denoiser, judge), lambda: None), stage="compile"
    )
    with CallLog(pipe.unet) as calls:
        optimised = hybridge.optimize(pipe, techniques=["compiled"])
    assert len(calls) == 2
    assert optimised.done[0].outcome == "no effect"


def test_steps_are_counted_over_all_of_them(pipe: Any, put: Put) -> None:
    def seven(context: PipelineContext) -> Applied:
        context.arguments["num_inference_steps"] = 7

        def judge(log: CallLog) -> Proof:
            return Proof(len(log) == 7, f"{len(log)} forwards")

        return Applied(counted(lambda: context.denoiser, judge), lambda: context.arguments.clear())

    put("seven-steps", seven, stage="call")
    optimised = hybridge.optimize(pipe, techniques=["seven-steps"])
    assert optimised.done[0].evidence == "7 forwards"
    assert optimised.call == {"num_inference_steps": 7}
    optimised.undo()
    assert optimised.call == {}


def test_the_call_takes_the_techniques_along(pipe: Any, put: Put) -> None:
    heard: list[int] = []
    resets: list[str] = []

    def listening(context: PipelineContext) -> Applied:
        context.after_step.append(lambda _context, step, _tensors: heard.append(step))
        context.before_picture.append(lambda: resets.append("reset"))
        return Applied(watching(lambda: SEEN), context.after_step.clear)

    put("listening", listening)
    optimised = hybridge.optimize(pipe, techniques=["listening"], prove=False)
    by_call = picture(pipe, **optimised.call)
    assert heard == [0, 1, 2]
    assert resets == ["reset"]
    assert np.array_equal(by_call, picture(pipe))

    heard.clear()
    (image,) = optimised.generate("a cat", seed=0, num_inference_steps=3, height=64, width=64)
    assert heard == [0, 1, 2]
    assert np.array_equal(np.asarray(image), (by_call[0] * 255).round().astype("uint8"))
    for name in ("output_type", "callback_on_step_end"):
        with pytest.raises(RequestError, match="is decided here"):
            optimised.generate("a cat", **{name: None})


def test_a_picture_that_takes_several_calls_has_no_arguments_for_one(pipe: Any, put: Put) -> None:
    def otherwise(context: PipelineContext) -> Applied:
        former, context.generate = context.generate, lambda *_: np.zeros((1, 8, 8, 3))
        return Applied(watching(lambda: SEEN), lambda: setattr(context, "generate", former))

    put("otherwise", otherwise)
    optimised = hybridge.optimize(pipe, techniques=["otherwise"])
    with pytest.raises(RequestError, match="generate"):
        _ = optimised.call
    assert optimised.generate("a cat")[0].size == (8, 8)
    optimised.undo()
    assert optimised.call == {}


def test_a_stack_that_makes_no_picture_is_undone(pipe: Any, put: Put) -> None:
    def spoiling(context: PipelineContext) -> Applied:
        applied = doubled(context)
        context.denoiser.conv_out.bias.data.fill_(float("nan"))
        return applied

    before = picture(pipe)
    put("spoiling", spoiling)
    with pytest.raises(EngineFailure, match="NaN or infinity") as caught:
        hybridge.optimize(pipe, techniques=["channels-last", "spoiling"])
    assert "all of it is undone" in caught.value.what
    assert pipe.unet.conv_out.weight.stride(1) != 1
    assert np.array_equal(picture(pipe), before)

    put("spoiling", lambda context: replace(spoiling(context), undo=None))
    with pytest.raises(EngineFailure, match="undone but for spoiling: load the pipeline anew"):
        hybridge.optimize(pipe, techniques=["channels-last", "spoiling"])


def test_whoever_is_interrupted_has_the_pipeline_back(pipe: Any, put: Put) -> None:
    def interrupted(_: PipelineContext) -> Applied:
        raise KeyboardInterrupt

    put("interrupted", interrupted)
    before = picture(pipe)
    with pytest.raises(KeyboardInterrupt):
        hybridge.optimize(pipe, techniques=["channels-last", "interrupted"])
    assert pipe.unet.conv_out.weight.stride(1) != 1
    assert np.array_equal(picture(pipe), before)


def test_techniques_without_a_way_back_are_named(pipe: Any, put: Put) -> None:
    put("one-way", lambda context: replace(doubled(context), undo=None))
    optimised = hybridge.optimize(pipe, techniques=["channels-last", "one-way"])
    assert optimised.undo() == ("one-way",)
    assert pipe.unet.conv_out.weight.stride(1) != 1


def test_the_folder_goes_when_all_is_undone(pipe: Any, put: Put) -> None:
    folders: list[Path] = []

    def writing(context: PipelineContext) -> Applied:
        folders.append(context.folder)
        (context.folder / "weights").write_bytes(b"1")
        return inert(context)

    put("writing", writing)
    optimised = hybridge.optimize(pipe, techniques=["writing"], prove=False)
    assert (folders[0] / "weights").is_file()
    optimised.undo()
    assert not folders[0].exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "neither"),
        ({"preset": "fastest", "techniques": ["freeu"]}, "both"),
        ({"preset": "fastes"}, "Try: fastest"),
        ({"techniques": []}, "not a list"),
        ({"techniques": "freeu"}, "not a list"),
        ({"techniques": ["channel-last"]}, "Try: channels-last"),
        ({"techniques": ["channels-last", "channels-last"]}, "twice"),
        ({"techniques": ["channels-last"], "device": "gpu"}, "not a device"),
        ({"techniques": ["channels-last"], "device": "cuda:0"}, 'pipe.to("cuda:0")'),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_touched(
    untouched: Any, arguments: dict[str, Any], says: str
) -> None:
    before = dict(vars(untouched))
    with pytest.raises(RequestError) as caught:
        hybridge.optimize(untouched, **arguments)
    assert says in str(caught.value)
    assert dict(vars(untouched)) == before


@pytest.mark.parametrize("what", ["a string", None, torch.nn.Linear(1, 1)])
def test_what_is_no_pipeline_is_refused(what: Any) -> None:
    with pytest.raises(RequestError, match="not a pipeline"):
        hybridge.optimize(what, preset="fastest")


def test_pipelines_that_start_from_a_picture_are_refused(untouched: Any) -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    with pytest.raises(RequestError, match="from text to pictures"):
        hybridge.optimize(StableDiffusionXLImg2ImgPipeline(**untouched.components), preset="fastest")


@pytest.mark.parametrize(
    "preset",
    ["under-4gb", pytest.param("under-6gb", marks=pytest.mark.quantisers), "under-8gb", "best-quality"],
)
def test_a_preset_on_a_cpu_works_in_every_part_and_comes_off(pipe: Any, preset: str) -> None:
    names = PRESETS[preset].recipes["cpu"].techniques
    if not set(names) <= set(catalogue.TECHNIQUES):
        pytest.skip("no such rows yet")
    before = picture(pipe)
    optimised = hybridge.optimize(pipe, preset=preset, device="cpu")
    assert [done.technique for done in optimised.done] == list(names)
    assert {done.outcome for done in optimised.done} == {"worked"}, str(optimised)
    (image,) = optimised.generate("a cat", num_inference_steps=3, height=64, width=64)
    assert image.size == (64, 64)
    assert optimised.undo() == ()
    assert np.array_equal(picture(pipe), before)


def put_hybrid(put: Put, apply: Callable[[PipelineContext], Applied]) -> None:
    def why_missing(context: PipelineContext) -> Missing | None:
        return None if context.server else Missing("unavailable", "no server was named", instead="`hybridge serve`")

    put("bf16", doubled, stage="dtype")
    put("remote-vae", apply, stage="vae", why_missing=why_missing)


def test_hybrid_without_a_server_is_refused_before_anything_is_touched(pipe: Any, put: Put) -> None:
    put_hybrid(put, inert)
    bias = pipe.unet.conv_out.bias.clone()
    with pytest.raises(RequestError, match="hybrid cannot be had here, as it stands on Remote-Vae") as caught:
        hybridge.optimize(pipe, preset="hybrid")
    assert caught.value.saw == "no server was named"
    with pytest.raises(ClientError):
        hybridge.optimize(pipe, preset="hybrid", server="http://127.0.0.1:9")
    assert torch.equal(pipe.unet.conv_out.bias, bias)


def test_a_preset_is_undone_when_what_it_stands_on_fails(pipe: Any, put: Put, server: str) -> None:
    def failing(_: PipelineContext) -> Applied:
        raise ClientError("no model fits")

    put_hybrid(put, failing)
    bias = pipe.unet.conv_out.bias.clone()
    with pytest.raises(
        EngineFailure, match="hybrid stands on Remote-Vae, which failed: saw ClientError: no model fits"
    ):
        hybridge.optimize(pipe, preset="hybrid", server=server)
    assert torch.equal(pipe.unet.conv_out.bias, bias)


def test_weights_can_be_had_again_unless_the_pipeline_was_made_in_memory(
    pipe: Any, put: Put, tiny_folder: Path
) -> None:
    contexts: list[PipelineContext] = []

    def keeping(context: PipelineContext) -> Applied:
        contexts.append(context)
        return inert(context)

    put("keeping", keeping)
    hybridge.optimize(pipe, techniques=["keeping"], prove=False)
    fresh = contexts[0].reload(vae=None)
    assert fresh.vae is None
    assert torch.equal(fresh.unet.conv_out.bias, pipe.unet.conv_out.bias)
    assert contexts[0].origin == str(tiny_folder / "base")

    made = type(pipe)(**pipe.components)
    hybridge.optimize(made, techniques=["keeping"], prove=False)
    with pytest.raises(RequestError, match="not loaded from anywhere"):
        contexts[1].reload()
