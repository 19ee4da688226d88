"""The facade against diffusers' own modules, bit for bit."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import in_strips
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from PIL import Image

from hybridge.engine import Choice, Engine, EngineOptions, resolve, to_pixels, to_unit
from hybridge.engine.device_profile import device_profile_for
from hybridge.errors import EngineFailure, RequestError, Stopped, TooLarge
from hybridge.models import CATALOGUE, Normalisation


def test_the_config_is_the_files_without_where_it_came_from(engines) -> None:
    config = engines["flux"].config
    assert (config["scaling_factor"], config["latent_channels"]) == (0.3611, 16)
    assert not [name for name in config if name.startswith("_")]
    assert json.loads(json.dumps(config)).keys() == config.keys()


def latents(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@torch.inference_mode()
def theirs(engine: Engine, z: torch.Tensor) -> torch.Tensor:
    return engine.module.decode(z).sample


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (2, 4, 5, 9), (1, 4, 1, 1)])
def test_latents_in_vae_space_are_decoded_as_they_are(engines, shape) -> None:
    z = latents(*shape)
    assert torch.equal(engines["sd-v1"].decode(z), theirs(engines["sd-v1"], z))


def test_a_pipelines_normalisation_is_undone(engines) -> None:
    engine, z = engines["flux"], latents(1, 16, 8, 8)
    expected = theirs(engine, z / 0.3611 + 0.1159)
    assert torch.equal(engine.decode(z, sent=engine.spec.normalisation), expected)


def test_a_mean_and_a_deviation_for_each_channel(specs, tmp_path) -> None:
    """Playground v2.5's VAE has them, and diffusers' SDXL pipelines apply them."""
    folder = shutil.copytree(specs["sdxl"].source, tmp_path / "playground")
    config = json.loads((folder / "config.json").read_text())
    mean, std = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]
    config |= {"latents_mean": mean, "latents_std": std, "scaling_factor": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    engine = Engine.load(resolve(f"playground={folder}"), EngineOptions(device="cpu", exactness="bitwise"))
    z, own = latents(1, 4, 4, 4), engine.spec.normalisation
    means, deviations = (torch.tensor(numbers).view(1, 4, 1, 1) for numbers in (mean, std))
    assert torch.equal(engine.decode(z, sent=own), theirs(engine, z * deviations / 0.5 + means))
    image = latents(1, 3, 32, 32).clamp(-1, 1)
    assert torch.equal(engine.encode(image, wanted=own), (engine.encode(image) - means) * 0.5 / deviations)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_latents_are_scaled_in_the_wider_dtype(engines, dtype) -> None:
    engine, z = engines["sd-v1"], latents(1, 4, 8, 8, dtype=dtype)
    expected = theirs(engine, z.float() / 0.18215)
    assert torch.equal(engine.decode(z, sent=Normalisation(0.18215)), expected)


def test_packed_latents_are_unpacked_as_flux_does(engines) -> None:
    engine, z = engines["flux"], latents(2, 16, 8, 12)
    packed = FluxPipeline._pack_latents(z, 2, 16, 8, 12)
    assert torch.equal(engine.decode(packed, height=64, width=96), engine.decode(z))
    assert torch.equal(FluxPipeline._unpack_latents(packed, 64, 96, 8), z)


def test_one_item_without_its_batch_axis(engines) -> None:
    z = latents(16, 4, 6)
    assert torch.equal(engines["flux"].decode(z, height=32, width=48), engines["flux"].decode(z[None]))


class TestTinyAutoencoders:
    """They eat normalised latents, so for them the same request means the opposite."""

    def test_scaled_latents_are_taken_as_they_are(self, engines) -> None:
        engine, z = engines["taesd"], latents(1, 4, 8, 8)
        assert torch.equal(engine.decode(z, sent=Normalisation(0.18215)), theirs(engine, z))

    def test_vae_space_latents_get_the_parents_normalisation(self, engines) -> None:
        engine, z = engines["taesd"], latents(1, 4, 8, 8)
        assert torch.equal(engine.decode(z), theirs(engine, z * 0.18215))

    @torch.inference_mode()
    def test_encoding_does_the_reverse(self, engines) -> None:
        engine, image = engines["taesd"], latents(1, 3, 64, 64).clamp(-1, 1)
        plain = engine.module.encode(image).latents
        assert torch.equal(engine.encode(image, wanted=Normalisation(0.18215)), plain)
        assert torch.equal(engine.encode(image), plain / 0.18215)


class TestEncode:
    @torch.inference_mode()
    def test_pixels_become_what_diffusers_makes_of_a_picture(self, engines) -> None:
        engine = engines["sd-v1"]
        picture = Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 60).convert("RGB")
        expected = engine.module.encode(VaeImageProcessor().preprocess(picture)).latent_dist.mode()
        image = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(1, 48, 64, 3)
        assert torch.equal(engine.encode(image), expected)
        assert torch.equal(engine.encode(image.permute(0, 3, 1, 2)), expected)

    @torch.inference_mode()
    def test_normalisation_is_applied_after_the_mode(self, engines) -> None:
        engine, image = engines["flux"], latents(1, 3, 32, 32).clamp(-1, 1)
        expected = (engine.encode(image) - 0.1159) * 0.3611
        assert torch.equal(engine.encode(image, wanted=engine.spec.normalisation), expected)

    @torch.inference_mode()
    def test_moments_are_the_modules_own(self, engines) -> None:
        engine, image = engines["sd-v1"], latents(2, 3, 32, 32).clamp(-1, 1)
        moments = engine.moments(image, value_range="signed")
        assert moments.shape == (2, 8, 4, 4)
        assert torch.equal(moments, engine.module.encode(image).latent_dist.parameters)
        assert torch.equal(moments[:, :4], engine.encode(image))

    def test_moments_keep_to_a_budget_like_everything_else(self, engines) -> None:
        with pytest.raises(TooLarge, match="at least"):
            engines["sd-v1"].moments(torch.zeros(1, 3, 32, 32), budget_bytes=1)

    def test_a_tiny_autoencoder_has_no_moments(self, engines) -> None:
        with pytest.raises(RequestError, match="taesd has no posterior"):
            engines["taesd"].moments(torch.zeros(1, 3, 32, 32))

    @torch.inference_mode()
    @pytest.mark.parametrize("batch", [1, 2])
    def test_memory_layout_is_kept_so_that_sums_have_the_same_order(self, engines, batch) -> None:
        engine, z = engines["sd-v1"], latents(batch, 4, 8, 8).to(memory_format=torch.channels_last)
        assert torch.equal(engine.decode(z), theirs(engine, z))

    def test_ranges(self, engines) -> None:
        engine, unit = engines["sd-v1"], torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        signed = unit * 2 - 1
        assert torch.equal(engine.encode(unit), engine.encode(signed))
        # A bright picture in [-1, 1] has nothing below zero: only saying so helps.
        bright = unit * 0.5 + 0.5
        assert not torch.equal(engine.encode(bright), engine.encode(bright, value_range="signed"))

    def test_a_draw_is_repeated_by_its_seed(self, engines) -> None:
        engine, image = engines["sd-v1"], torch.zeros(1, 3, 32, 32)
        first, again, other = (engine.encode(image, sample=True, seed=seed) for seed in (7, 7, 8))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert not torch.equal(first, engine.encode(image))

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (torch.zeros(1, 4, 32, 32), "not an image tensor"),
            (torch.zeros(2, 2), "not an image tensor"),
            (torch.zeros(1, 3, 33, 32), "multiples of 8"),
            (torch.full((1, 3, 32, 32), 128.0), "0..255 as uint8"),
            (torch.full((1, 3, 32, 32), float("nan")), "pixels hold numbers"),
        ],
    )
    def test_what_is_no_image_is_refused(self, engines, image, message) -> None:
        with pytest.raises(RequestError, match=message):
            engines["sd-v1"].encode(image)


class TestDamagedLatents:
    def test_nan_is_refused_with_its_place(self, engines) -> None:
        z = latents(1, 4, 8, 8)
        z[0, 2, 3, 1] = float("nan")
        with pytest.raises(RequestError, match="nan at element 153, 1 of 256"):
            engines["sd-v1"].decode(z)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_damage_at_the_start_alone_names_the_known_cause(self, engines, dtype) -> None:
        z = latents(1, 4, 8, 8, dtype=dtype)
        pointers = torch.tensor([0x3A20, 0x1234, 0x7FFF, 0, 0x3A20, 0x7F80, 0x7FFF, 0], dtype=torch.int16)
        z.view(-1)[:8] = pointers.view(dtype)
        with pytest.raises(RequestError, match="tensors on a GPU"):
            engines["sd-v1"].decode(z)

    def test_absurd_but_finite_numbers_are_refused(self, engines) -> None:
        z = latents(1, 4, 8, 8)
        z[0, 3] = 2e7
        with pytest.raises(RequestError, match="2e\\+07"):
            engines["sd-v1"].decode(z)


def test_overflow_is_an_error_and_no_black_picture(tmp_path, specs) -> None:
    module = AutoencoderKL.from_pretrained(specs["sd-v1"].source)
    module.decoder.conv_out.bias.data.fill_(1e38)
    module.decoder.conv_out.weight.data.fill_(1e38)
    engine = Engine(specs["sd-v1"], module.eval(), Choice(torch.device("cpu"), ""), Choice(torch.float32, ""))
    with pytest.raises(EngineFailure, match="NaN or infinity in float32"):
        engine.decode(latents(1, 4, 4, 4))


def test_pixels_are_those_of_diffusers_pictures(engines) -> None:
    sample = latents(2, 3, 16, 16) * 1.5
    pictures = VaeImageProcessor().postprocess(sample, output_type="pil")
    assert [bytes(p.numpy().tobytes()) for p in to_pixels(sample)] == [p.tobytes() for p in pictures]
    assert torch.equal(to_unit(sample), VaeImageProcessor().postprocess(sample, output_type="pt"))


def test_the_classes_are_diffusers_own(engines) -> None:
    assert isinstance(engines["sd-v1"].module, AutoencoderKL)
    assert isinstance(engines["taesd"].module, AutoencoderTiny)
    assert engines["sd-v1"].weights_bytes == sum(p.numel() * 4 for p in engines["sd-v1"].module.parameters())


def held_bytes() -> dict[int, int]:
    """Every storage that a tensor of this process lies in: address → bytes."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@pytest.mark.parametrize("exactness", ["rounding", "bitwise"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_bytes_are_what_stays_after_a_run(tmp_path, dtype, exactness) -> None:
    """Enough channels for transformed weights, which are larger than the layers' own.

    A CPU with matrix instructions for the dtype (AMX) transforms none.
    """
    module = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=1,
        latent_channels=4,
    )
    module.save_pretrained(tmp_path)
    del module
    spec = replace(CATALOGUE["sd-v1"], source=str(tmp_path), subfolder=None)
    options = EngineOptions(device="cpu", dtype=dtype, exactness=exactness)
    expected = Engine.expected_bytes(spec, options)
    before = held_bytes()
    engine = Engine.load(spec, options)
    if exactness == "rounding":
        engine = in_strips(engine)
    assert engine.weights_bytes == expected
    engine.decode(latents(1, 4, 4, 4))
    engine.encode(torch.zeros(1, 3, 32, 32), value_range="unit")
    stays = sum(nbytes for address, nbytes in held_bytes().items() if address not in before)
    own = sum(parameter.nbytes for parameter in engine.module.parameters())
    is_transformed = (
        exactness == "rounding" and device_profile_for("cpu", engine.dtype.value).transform_from is not None
    )
    assert (stays > 2 * own) == is_transformed
    assert stays <= expected <= 1.01 * stays


class TestWithinRounding:
    """What an engine does unless it was asked for the same bits."""

    @pytest.fixture
    def engine(self, specs) -> Engine:
        return Engine.load(specs["sd-v1"], EngineOptions(device="cpu"))

    def test_strips_give_the_plain_picture(self, engine, engines) -> None:
        z = latents(2, 4, 39, 36)
        torch.testing.assert_close(engine.decode(z), engines["sd-v1"].decode(z), rtol=1e-3, atol=1e-4)
        picture = latents(1, 3, 304, 256).clamp(-1, 1)
        torch.testing.assert_close(engine.encode(picture), engines["sd-v1"].encode(picture), rtol=1e-3, atol=1e-4)

    def test_the_plan_is_for_pictures(self, engine, engines) -> None:
        made = engine.plan("decode", 1, 320, 640)
        assert (made.mode, made.height, made.width) == ("strips", 40, 80)
        assert engine.plan("encode", 1, 320, 640).height == 320
        assert engines["sd-v1"].plan("decode", 1, 320, 640).mode == "whole"

    def test_what_stays_in_cache_runs_as_it_is(self, engine, engines) -> None:
        z = latents(1, 4, 8, 8)
        assert engine.plan("decode", 1, 64, 64).mode == "whole"
        assert torch.equal(engine.decode(z), engines["sd-v1"].decode(z))

    def test_a_budget_bounds_a_call(self, engine, engines) -> None:
        for any_engine in (engine, engines["sd-v1"]):
            with pytest.raises(TooLarge, match="at least"):
                any_engine.decode(latents(1, 4, 16, 16), budget_bytes=1000)

    def test_progress_and_an_end_between_strips(self, engine) -> None:
        seen: list[tuple[int, int]] = []
        z = latents(1, 4, 64, 48)
        engine.decode(z, progress=lambda done, of: seen.append((done, of)))
        assert seen[-1][0] == seen[-1][1] == len(seen)
        with pytest.raises(Stopped):
            engine.decode(z, should_stop=lambda: True)

    def test_another_call_between_strips(self, engine) -> None:
        """Which is how a small job overtakes a large one."""
        large, small = latents(1, 4, 48, 40), latents(1, 4, 36, 36, seed=1)
        within: list[torch.Tensor] = []

        def overtake(done: int, _: int) -> None:
            if done in (1, 7):
                within.append(engine.decode(small))

        assert torch.equal(engine.decode(large, progress=overtake), engine.decode(large))
        assert all(torch.equal(picture, engine.decode(small)) for picture in within)
        assert len(within) == 2
