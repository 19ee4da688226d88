"""diffusers' own ``remote_decode`` and ``remote_encode``, imported and unmodified, against a live uvicorn.

Every picture must be, to the pixel, what diffusers decodes in this process with the same module.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import av
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.remote_utils import remote_decode, remote_encode
from diffusers.video_processor import VideoProcessor
from PIL import Image, ImageChops

from hybridge.engine import Engine

#: Sides that diffusers' own remote tests use, among them latents of 151, 173, 201 and 233.
SIDES = (320, 512, 640, 704, 896, 1024, 1208, 1384, 1536, 1608, 1864, 2048)


@dataclass(frozen=True)
class Case:
    """What diffusers' remote tests send for the endpoints of the pilot; those of 1024 pixels at half the side."""

    model: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    scaling_factor: float
    shift_factor: float | None = None
    height: int | None = None
    width: int | None = None
    size: tuple[int, int] = (512, 512)

    @property
    def latents(self) -> torch.Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(13)).to(self.dtype)

    @property
    def parameters(self) -> dict[str, object]:
        named = {name: getattr(self, name) for name in ("scaling_factor", "shift_factor", "height", "width")}
        return {name: value for name, value in named.items() if value is not None}


CASES = [
    Case("sd-v1", (1, 4, 64, 64), torch.float16, 0.18215),
    Case("sdxl", (1, 4, 64, 64), torch.float16, 0.13025),
    Case("flux", (1, 16, 64, 64), torch.bfloat16, 0.3611, 0.1159),
    Case("flux", (1, 1024, 64), torch.bfloat16, 0.3611, 0.1159, 512, 512),
]
each_case = pytest.mark.parametrize("case", CASES, ids=["sd-v1", "sdxl", "flux", "flux-packed"], scope="class")


@torch.inference_mode()
def locally(engine: Engine, case: Case) -> torch.Tensor:
    """The same latents through diffusers in this process: float (1, 3, H, W) in [-1, 1]."""
    z = case.latents.float()
    if case.height and z.ndim == 3:
        from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

        z = FluxPipeline._unpack_latents(z, case.height, case.width, 8)
    z = z / case.scaling_factor + (case.shift_factor or 0.0)
    return engine.module.decode(z).sample


def local_picture(engine: Engine, case: Case) -> Image.Image:
    return VaeImageProcessor().postprocess(locally(engine, case), output_type="pil")[0]


def assert_same(one: Image.Image, other: Image.Image) -> None:
    assert one.size == other.size
    assert ImageChops.difference(one, other).getbbox() is None


@each_case
class TestResponseMatrix:
    """One test for each row that diffusers' client can consume."""

    @pytest.fixture
    def call(self, server, case):
        return lambda **arguments: remote_decode(
            f"{server}/v1/{case.model}/decode", case.latents, **case.parameters, **arguments
        )

    @pytest.fixture(scope="class")
    @classmethod
    def sample(cls, engines, case) -> torch.Tensor:
        return locally(engines[case.model], case)

    @pytest.fixture
    def expected(self, sample) -> Image.Image:
        return VaeImageProcessor().postprocess(sample, output_type="pil")[0]

    def test_jpeg(self, call, expected, case) -> None:
        picture = call()
        assert (picture.format, picture.mode, picture.size) == ("jpeg", "RGB", case.size)
        # Lossy, so near and not equal: noise is the hardest picture that JPEG can be given.
        difference = ImageChops.difference(picture, expected).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        assert max(difference) <= 4

    def test_png(self, call, expected) -> None:
        picture = call(image_format="png")
        assert picture.format == "png"
        assert_same(picture, expected)

    def test_pil_with_a_processor_gives_a_list(self, call, expected) -> None:
        (picture,) = call(processor=VaeImageProcessor())
        assert_same(picture, expected)

    def test_tensor_through_a_processor(self, call, expected) -> None:
        assert_same(call(output_type="pt", processor=VaeImageProcessor()), expected)

    def test_tensor(self, call, sample, case) -> None:
        tensor = call(output_type="pt", return_type="pt")
        assert tensor.shape == (1, 3, *case.size[::-1])
        assert torch.equal(tensor, sample)

    def test_pixels(self, call, expected) -> None:
        assert_same(call(output_type="pt", partial_postprocess=True), expected)

    def test_pixels_as_a_tensor(self, call, expected, case) -> None:
        tensor = call(output_type="pt", partial_postprocess=True, return_type="pt")
        assert (tensor.dtype, tensor.shape) == (torch.uint8, (1, *case.size[::-1], 3))
        assert_same(Image.fromarray(tensor[0].numpy()), expected)

    def test_video_of_one_frame(self, call, case) -> None:
        with av.open(io.BytesIO(call(output_type="mp4", return_type="mp4"))) as video:
            frames = [frame.to_image() for frame in video.decode(video=0)]
        assert [frame.size for frame in frames] == [case.size]


class TestScaling:
    """The table of docs/protocol.md, as far as diffusers' client can send it."""

    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    @torch.inference_mode()
    def decoded(self, engines, z: torch.Tensor) -> torch.Tensor:
        return engines["sdxl"].module.decode(z).sample

    def remote(self, server, **arguments) -> torch.Tensor:
        return remote_decode(f"{server}/v1/sdxl/decode", self.z, output_type="pt", return_type="pt", **arguments)

    def test_do_scaling_false(self, server, engines) -> None:
        assert torch.equal(self.remote(server, do_scaling=False), self.decoded(engines, self.z))

    def test_legacy_do_scaling_uses_the_models_own(self, server, engines) -> None:
        with pytest.warns(FutureWarning, match="`do_scaling` is deprecated"):
            tensor = self.remote(server)
        assert torch.equal(tensor, self.decoded(engines, self.z / 0.13025))

    def test_a_shift_alone_goes_with_the_models_own_factor(self, server, engines) -> None:
        with pytest.warns(FutureWarning):
            tensor = self.remote(server, shift_factor=0.5)
        assert torch.equal(tensor, self.decoded(engines, self.z / 0.13025 + 0.5))

    def test_base64_arguments_still_warn_and_work(self, server, engines) -> None:
        with pytest.warns(FutureWarning, match="base64"):
            tensor = self.remote(
                server, scaling_factor=0.13025, input_tensor_type="base64", output_tensor_type="base64"
            )
        assert torch.equal(tensor, self.decoded(engines, self.z / 0.13025))


def test_a_batch_comes_back_as_a_list(server, engines) -> None:
    z = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    pictures = remote_decode(
        f"{server}/v1/sd-v1/decode", z, scaling_factor=0.18215, output_type="pt", partial_postprocess=True
    )
    with torch.inference_mode():
        sample = engines["sd-v1"].module.decode(z / 0.18215).sample
    for picture, expected in zip(pictures, VaeImageProcessor().postprocess(sample, output_type="pil"), strict=True):
        assert_same(picture, expected)


def test_a_video_processor_reads_what_an_image_model_gives_for_pil(server) -> None:
    z = torch.zeros(1, 4, 8, 8)
    pictures = remote_decode(
        f"{server}/v1/sd-v1/decode", z, scaling_factor=0.18215, processor=VideoProcessor(vae_scale_factor=8)
    )
    assert [picture.size for picture in pictures] == [(64, 64)]


@pytest.mark.parametrize("side", SIDES)
def test_encode_then_decode_at_every_size(server, engines, side) -> None:
    """Both directions, not square, with the height and width that diffusers' tests send along for 4-D latents."""
    width, height = side, SIDES[-1 - SIDES.index(side)]
    picture = Image.effect_mandelbrot((width, height), (-2, -1.2, 0.8, 1.2), 30).convert("RGB")
    encoded = remote_encode(f"{server}/v1/sd-v1/encode", picture, scaling_factor=0.18215)
    assert encoded.shape == (1, 4, height // 8, width // 8)
    decoded = remote_decode(
        f"{server}/v1/sd-v1/decode",
        encoded,
        scaling_factor=0.18215,
        height=height,
        width=width,
        output_type="pt",
        partial_postprocess=True,
    )
    assert decoded.size == picture.size


class TestEncode:
    @torch.inference_mode()
    def mode(self, engines, model: str, image: torch.Tensor) -> torch.Tensor:
        return engines[model].module.encode(image).latent_dist.mode()

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
    def test_pictures_of_any_mode(self, server, engines, mode) -> None:
        picture = Image.effect_mandelbrot((96, 64), (-2, -1.2, 0.8, 1.2), 30).convert(mode)
        expected = self.mode(engines, "sd-v1", VaeImageProcessor().preprocess(picture.convert("RGB")))
        assert torch.equal(remote_encode(f"{server}/v1/sd-v1/encode", picture), expected)

    def test_factors(self, server, engines) -> None:
        picture = Image.effect_mandelbrot((64, 64), (-2, -1.2, 0.8, 1.2), 30).convert("RGB")
        expected = self.mode(engines, "flux", VaeImageProcessor().preprocess(picture))
        latents = remote_encode(f"{server}/v1/flux/encode", picture, scaling_factor=0.3611, shift_factor=0.1159)
        assert torch.equal(latents, (expected - 0.1159) * 0.3611)

    @pytest.mark.parametrize("low", [0.0, -1.0])
    def test_tensors_without_a_content_type(self, server, engines, low) -> None:
        tensor = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3)) * (1 - low) + low
        signed = tensor if low else tensor * 2 - 1
        latents = remote_encode(f"{server}/v1/sd-v1/encode", tensor)
        assert torch.equal(latents, self.mode(engines, "sd-v1", signed))


class TestInference:
    """POST / and /predict, as the pilot's endpoints had it: the URL says nothing."""

    @pytest.mark.parametrize("path", ["/", "/predict"])
    @each_case
    def test_decode_finds_the_model_by_channels_and_factor(self, server, engines, case, path) -> None:
        picture = remote_decode(f"{server}{path}", case.latents, **case.parameters, image_format="png")
        assert_same(picture, local_picture(engines[case.model], case))

    def test_encode_finds_the_model_by_its_factor(self, server, engines) -> None:
        picture = Image.effect_mandelbrot((64, 64), (-2, -1.2, 0.8, 1.2), 30).convert("RGB")
        latents = remote_encode(server, picture, scaling_factor=0.13025)
        with torch.inference_mode():
            mode = engines["sdxl"].module.encode(VaeImageProcessor().preprocess(picture)).latent_dist.mode()
        assert torch.equal(latents, mode * 0.13025)

    def test_what_fits_several_is_refused_in_a_form_that_the_client_can_show(self, server) -> None:
        with pytest.raises(RuntimeError, match="several models here fit"):
            remote_decode(server, torch.zeros(1, 4, 8, 8), do_scaling=False)


def test_errors_reach_the_user_as_they_were_meant(server) -> None:
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="these latents are not sd-v1's"):
        remote_decode(f"{server}/v1/sd-v1/decode", torch.zeros(1, 16, 8, 8), scaling_factor=0.18215)
