"""The drop-in: what pipelines ask of a VAE, answered in strips or by the plain module."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import pickle
import re
from typing import Any

import pytest
import torch
import typer
from conftest import small_kl, small_tiny
from diffusers import AutoencoderKLTemporalDecoder, AutoencoderKLWan, DDIMScheduler, UNet2DConditionModel
from typer.testing import CliRunner

from hybridge.cli.plan import plan as plan_verb
from hybridge.engine.exact import ExactVAE, exact
from hybridge.errors import CannotLower, RequestError, TooLarge


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).norm() <= 5e-5 * other.norm())


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class TestSameAnswersAsTheModule:
    @torch.no_grad()
    def test_decode(self) -> None:
        vae, z = small_kl(4), noise(2, 4, 40, 33)
        assert near(exact(vae).decode(z).sample, vae.decode(z).sample)
        assert near(exact(vae).decode(z, return_dict=False)[0], vae.decode(z).sample)

    @torch.no_grad()
    def test_encode_gives_a_distribution(self) -> None:
        vae, picture = small_kl(4), noise(1, 3, 320, 272)
        ours, theirs = (module.encode(picture).latent_dist for module in (exact(vae), vae))
        assert type(ours) is type(theirs)
        assert near(ours.mode(), theirs.mode())
        draws = [dist.sample(torch.Generator().manual_seed(3)) for dist in (ours, theirs)]
        assert near(*draws)
        assert near(exact(vae).encode(picture, return_dict=False)[0].mode(), theirs.mode())

    @torch.no_grad()
    def test_a_tiny_one_gives_latents(self) -> None:
        vae, picture = small_tiny(4), noise(1, 3, 320, 272)
        ours, theirs = exact(vae).encode(picture), vae.encode(picture)
        assert type(ours) is type(theirs)
        assert near(ours.latents, theirs.latents)
        assert near(exact(vae).decode(theirs.latents).sample, vae.decode(theirs.latents).sample)
        assert near(exact(vae)(picture).sample, vae.decode(theirs.latents).sample)

    def test_what_it_is_asked_about_itself(self) -> None:
        vae = small_kl(4)
        wrapped = exact(vae)
        assert wrapped.config is vae.config
        assert (wrapped.dtype, wrapped.device) == (vae.dtype, vae.device)
        assert wrapped.post_quant_conv is vae.post_quant_conv
        with pytest.raises(AttributeError, match="no_such_thing"):
            wrapped.no_such_thing  # noqa: B018

    @torch.no_grad()
    def test_another_dtype_after_a_first_call(self) -> None:
        wrapped, z = exact(small_kl(4)), noise(1, 4, 40, 36)
        wrapped.decode(z)
        wrapped.to(torch.float64)
        assert wrapped.dtype is torch.float64
        sample = wrapped.decode(z.double()).sample
        assert (sample - wrapped.vae.decode(z.double()).sample).abs().max() < 1e-12


class TestBudget:
    def test_a_call_is_planned_within_it(self) -> None:
        free = exact(small_kl(4)).plan("decode", 1, 64, 64)
        bound = exact(small_kl(4), budget=free.peak_bytes - 1).plan("decode", 1, 64, 64)
        assert bound.peak_bytes < free.peak_bytes
        assert bound.mode != "whole"

    @torch.no_grad()
    def test_what_does_not_fit_is_refused_before_it_runs(self) -> None:
        with pytest.raises(TooLarge, match="at least"):
            exact(small_kl(4), budget="10KiB").decode(noise(1, 4, 32, 32))

    @pytest.mark.parametrize(("budget", "expected"), [("800 MiB", 800 * 2**20), (5000, 5000), (None, None)])
    def test_amounts(self, budget, expected) -> None:
        assert exact(small_kl(4), budget=budget).budget_bytes == expected

    @pytest.mark.parametrize("text", ["", "2 apples", "-1GiB", 0, "0MiB", -5, "1e9"])
    def test_what_is_no_amount(self, text) -> None:
        with pytest.raises(RequestError, match="not an amount of memory"):
            exact(small_kl(4), budget=text)


class TestThePlainModuleRuns:
    """And says why."""

    @torch.no_grad()
    def test_where_it_cannot_be_lowered(self, caplog) -> None:
        vae, z = small_kl(4), noise(1, 4, 4, 4)
        vae.decoder.mid_block.resnets[0].dropout.p = 0.1
        with caplog.at_level(logging.WARNING):
            wrapped = exact(vae)
        assert "decode runs as the plain module" in caplog.text
        assert "no dropout" in str(wrapped.why_plain("decode"))
        assert wrapped.why_plain("encode") is None
        assert torch.equal(wrapped.decode(z).sample, vae.decode(z).sample)
        with pytest.raises(CannotLower, match="no dropout"):
            wrapped.plan("decode", 1, 4, 4)

    @torch.no_grad()
    def test_where_a_pipeline_upcast_a_part(self) -> None:
        wrapped = exact(small_kl(4))
        wrapped.vae.post_quant_conv.double()
        assert "several dtypes" in str(wrapped.why_plain("decode"))

    def test_where_gradients_are_wanted(self) -> None:
        wrapped = exact(small_kl(4))
        z = noise(1, 4, 4, 4).requires_grad_()
        wrapped.decode(z).sample.sum().backward()
        assert z.grad is not None
        assert wrapped.why_plain("decode", z) == "gradients are wanted"
        wrapped.decode(z.detach()).sample.sum().backward()
        assert wrapped.vae.decoder.conv_in.weight.grad is not None
        with torch.no_grad():
            assert wrapped.why_plain("decode", z) is None
        assert wrapped.requires_grad_(False).why_plain("decode", z.detach()) is None


def test_tiling_stays_off_and_says_why(caplog) -> None:
    vae = small_kl(4)
    vae.enable_tiling()
    wrapped = exact(vae)
    wrapped.enable_tiling()
    assert not vae.use_tiling
    assert not wrapped.use_tiling
    assert "without changing the picture" in caplog.text
    wrapped.disable_tiling()


class TestAVideosVAE:
    """Of another kind than strips know, run as it is: with everything that its own pipelines hand to it."""

    def video(self) -> ExactVAE:
        torch.manual_seed(0)
        return exact(
            AutoencoderKLTemporalDecoder(block_out_channels=(32,), layers_per_block=1).eval().requires_grad_(False)
        )

    def test_what_only_it_takes_reaches_it(self) -> None:
        wrapped, z = self.video(), noise(2, 4, 4, 4)
        assert torch.equal(wrapped.decode(z, num_frames=2).sample, wrapped.vae.decode(z, num_frames=2).sample)
        assert "num_frames" in inspect.signature(wrapped.forward).parameters  # where diffusers looks for it

    def test_its_tiling_is_its_own(self) -> None:
        vae = AutoencoderKLWan(base_dim=8, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False])
        vae.encoder.nonlinearity = vae.decoder.nonlinearity = torch.nn.ReLU()
        wrapped = exact(vae)
        wrapped.enable_tiling(tile_sample_min_height=64)
        assert wrapped.use_tiling
        assert vae.use_tiling
        assert vae.tile_sample_min_height == 64
        assert exact(vae).use_tiling
        wrapped.disable_tiling()
        assert not vae.use_tiling

    def test_a_generator_reaches_it(self) -> None:
        class Noisy(torch.nn.Module):
            def decode(self, z: torch.Tensor, return_dict: bool = True, generator: Any = None) -> Any:
                return (z + torch.randn(z.shape, generator=generator),)

        wrapped, z = exact(Noisy()), torch.zeros(1, 4, 2, 2)
        first, again = (wrapped.decode(z, False, torch.Generator().manual_seed(1))[0] for _ in range(2))
        assert torch.equal(first, again)


@torch.no_grad()
def test_as_a_whole_it_is_called_like_the_wrapped_module() -> None:
    wrapped, picture = exact(small_kl(4)), noise(1, 3, 32, 32)
    for given in ({}, {"sample_posterior": True, "generator": torch.Generator()}):
        made = []
        for module in (wrapped, wrapped.vae):
            if "generator" in given:
                given["generator"].manual_seed(1)
            made.append(module(picture, **given).sample)
        assert near(*made)


def test_slicing_is_handed_on() -> None:
    wrapped = exact(small_kl(4))
    wrapped.enable_slicing()
    assert wrapped.vae.use_slicing
    wrapped.disable_slicing()
    assert not wrapped.vae.use_slicing


@torch.no_grad()
@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 3, 8, 8), (1, 4, 2, 8, 8)])
def test_what_is_not_latents_is_refused(shape) -> None:
    with pytest.raises(RequestError, match=r"\[batch, 4, height, width\]"):
        exact(small_kl(4)).decode(noise(*shape))


@torch.no_grad()
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_latents_that_hold_no_numbers_are_refused(wrong) -> None:
    z = noise(1, 4, 8, 8)
    z[0, 0, 0, 1] = wrong
    with pytest.raises(RequestError, match="the latents hold NaN or infinity"):
        exact(small_kl(4)).decode(z)


def through_a_pickle(wrapped: ExactVAE) -> Any:
    return pickle.loads(pickle.dumps(wrapped))  # noqa: S301 - made in the same line


@pytest.mark.parametrize("copied", [copy.deepcopy, through_a_pickle])
@torch.no_grad()
def test_a_copy_has_weights_of_its_own(copied) -> None:
    wrapped, z = exact(small_kl(4), budget="8MiB", spill=False), noise(1, 4, 40, 36)
    expected = wrapped.decode(z).sample
    other = copied(wrapped)
    assert (other.budget_bytes, other.modes) == (wrapped.budget_bytes, wrapped.modes)
    wrapped.vae.decoder.conv_out.weight.zero_()
    assert torch.equal(other.decode(z).sample, expected)
    assert not torch.equal(wrapped.decode(z).sample, expected)


def test_a_pipeline_is_no_vae() -> None:
    with pytest.raises(RequestError, match=r"exact\(pipe\.vae\)"):
        exact(pipeline(small_kl(4)))


def test_what_is_wrapped_already_is_not_wrapped_again() -> None:
    vae = small_kl(4)
    again = exact(exact(vae, budget="1MiB"), budget="8MiB")
    assert again.vae is vae
    assert again.budget_bytes == 8 * 2**20


def test_accelerates_hooks_bring_the_weights() -> None:
    from accelerate import cpu_offload_with_hook
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Arrival(ModelHook):
        arrived = 0

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            self.arrived += 1
            return args, kwargs

    wrapped, hook = exact(small_kl(4)), Arrival()
    add_hook_to_module(wrapped, hook)
    wrapped.decode(noise(1, 4, 4, 4))
    wrapped.encode(noise(1, 3, 32, 32))
    assert hook.arrived == 2
    offloaded, user = cpu_offload_with_hook(exact(small_kl(4)), execution_device="cpu")
    assert offloaded.decode(noise(1, 4, 4, 4)).sample.shape == (1, 3, 32, 32)
    user.offload()


def pipeline(vae: Any) -> Any:
    """A StableDiffusionPipeline of random weights, for prompts that are embedded already."""
    pytest.importorskip("transformers")
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
        sample_size=8,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet.eval(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_a_pipeline_takes_it_for_its_vae() -> None:
    pipe = pipeline(small_kl(4))
    pipe.set_progress_bar_config(disable=True)

    def picture() -> torch.Tensor:
        given = {"prompt_embeds": torch.ones(1, 4, 8), "negative_prompt_embeds": torch.zeros(1, 4, 8)}
        generator = torch.Generator().manual_seed(1)
        return pipe(**given, num_inference_steps=2, generator=generator, output_type="pt").images

    expected = picture()
    pipe.vae = exact(pipe.vae, budget="8MiB")
    assert near(picture(), expected)
    pipe.to(torch.float64)
    assert pipe.vae.dtype is torch.float64
    assert isinstance(pipeline(exact(small_kl(4))).vae, ExactVAE)


def test_a_pipeline_is_saved_with_it(tmp_path) -> None:
    vae = small_kl(4)
    pipe = pipeline(exact(vae))
    assert pipe.components["vae"] is pipe.vae
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
    loaded = type(vae).from_pretrained(tmp_path / "vae")
    assert torch.equal(loaded.decoder.conv_in.weight, vae.decoder.conv_in.weight)


class TestTheVerb:
    """``hybridge plan``."""

    def run(self, *arguments: str) -> Any:
        application = typer.Typer()
        application.command()(plan_verb)
        return CliRunner().invoke(application, arguments)

    def test_a_known_model_needs_no_weights(self) -> None:
        shown = self.run("sdxl", "--size", "2048", "--budget", "4GiB", "--dtype", "bfloat16", "--ops").stdout
        assert "sdxl, decode of 1 × 2048×2048 in bfloat16 on cpu" in shown
        assert "mode   strips, because the plain forward takes about" in shown
        assert re.search(r"kept   [\d.]+ [KMG]iB of other forms of the weights", shown)

    @pytest.mark.parametrize("model", ["starter", "flux", "taef1", "sd3"])
    @pytest.mark.parametrize("task", ["decode", "encode"])
    def test_every_kind_of_model(self, model, task) -> None:
        result = self.run(model, "--size", "256x512", "--task", task, "--json")
        made = json.loads(result.stdout)
        assert made["mode"] in ("strips", "lean", "recompute"), result
        assert made["kept_bytes"] > 0

    def test_too_small_a_budget_names_one_that_is_enough(self) -> None:
        assert isinstance(self.run("sdxl", "--size", "2048", "--budget", "1MiB").exception, TooLarge)

    @pytest.mark.parametrize("wrong", [("--size", "big"), ("--task", "paint"), ("--dtype", "int8")])
    def test_what_is_not_understood(self, wrong) -> None:
        assert isinstance(self.run("sdxl", *wrong).exception, RequestError)
