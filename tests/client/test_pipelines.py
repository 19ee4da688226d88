"""``connect``: diffusers' own pipelines give what they give locally, bit for bit.

Every equality here is bitwise: the server runs the plain module in the dtype of the pipeline's VAE, and the wire
carries that dtype and the memory layout.  Where a server computes in another way or dtype, it is within rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from conftest import small_kl
from PIL import Image
from pipelines import bitwise_engine, load_small_pipelines

import hybridge
from hybridge.models import CATALOGUE, ModelSpec
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

small = load_small_pipelines()

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' Euler scheduler
)

SIDE = 64


@pytest.fixture(scope="session")
def pipeline_specs(specs: dict[str, ModelSpec], tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    """The models of all tests, and SD3's."""
    folder = str(tmp_path_factory.mktemp("sd3"))
    small_kl(16, seed=5, quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609).save_pretrained(folder)
    return {**specs, "sd3": replace(CATALOGUE["sd3"], source=folder, subfolder=None)}


@pytest.fixture(scope="session")
def pipeline_server(pipeline_specs: dict[str, ModelSpec]) -> Iterator[str]:
    """A server that runs diffusers' modules as they are."""
    engines = {name: bitwise_engine(spec) for name, spec in pipeline_specs.items()}
    with running(create_app(LocalBackend(engines))) as address:
        yield address


@pytest.fixture
def local_vae(pipeline_specs: dict[str, ModelSpec]) -> Callable[[str], Any]:
    """Loads a VAE as a pipeline would."""

    def load(name: str) -> Any:
        spec = pipeline_specs[name]
        return getattr(diffusers, spec.class_name).from_pretrained(spec.source).eval()

    return load


def picture(seed: int = 0, side: int = SIDE) -> Image.Image:
    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (side, side, 3), dtype=np.uint8))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def call(pipe: Any, **arguments: Any) -> Any:
    """Two steps for one prompt, unless told otherwise; the pixels as floats."""
    defaults = {"prompt": "a cat in rain", "num_inference_steps": 2, "generator": seeded(), "output_type": "pt"}
    return pipe(**{**defaults, **arguments}).images


def sized(pipe: Any, **arguments: Any) -> Any:
    return call(pipe, height=SIDE, width=SIDE, **arguments)


def with_controlnet(vae: Any) -> Any:
    controlnet = small.controlnet(small.stable_diffusion(None).unet)
    return small.stable_diffusion(vae, diffusers.StableDiffusionControlNetPipeline, controlnet=controlnet)


def upscaled_by_latents(vae: Any) -> tuple[Any, Any]:
    return small.stable_diffusion(vae), small.latent_upscaler(vae)


def run_upscaled(pipes: tuple[Any, Any]) -> Any:
    generate, upscale = pipes
    latents = sized(generate, output_type="latent")
    return call(upscale, image=latents, guidance_scale=0)


def base_and_refiner(vae: Any) -> tuple[Any, Any]:
    return small.stable_diffusion_xl(vae), small.stable_diffusion_xl_refiner(vae)


def run_ensemble(pipes: tuple[Any, Any]) -> Any:
    base, refiner = pipes
    latents = sized(base, num_inference_steps=4, denoising_end=0.5, output_type="latent")
    return call(refiner, image=latents, num_inference_steps=4, denoising_start=0.5)


def run_refined(pipes: tuple[Any, Any]) -> Any:
    base, refiner = pipes
    return call(refiner, image=sized(base, output_type="pil"), num_inference_steps=4, strength=0.5)


@dataclass(frozen=True)
class Case:
    """A pipeline, or several that work together, and what is done with it."""

    name: str
    model: str
    build: Callable[[Any], Any]
    run: Callable[[Any], Any]


def sd(pipeline: Any = diffusers.StableDiffusionPipeline) -> Callable[[Any], Any]:
    return lambda vae: small.stable_diffusion(vae, pipeline)


IMG2IMG = sd(diffusers.StableDiffusionImg2ImgPipeline)
INPAINT = sd(diffusers.StableDiffusionInpaintPipeline)

CASES = [
    Case("sd-text", "sd-v1", sd(), sized),
    Case("sd-text-batch", "sd-v1", sd(), lambda p: sized(p, prompt=["a cat", "rain"], num_images_per_prompt=2)),
    Case("sd-image", "sd-v1", IMG2IMG, lambda p: call(p, image=picture(), strength=1.0)),
    Case(
        "sd-image-batch",
        "sd-v1",
        IMG2IMG,
        lambda p: call(
            p, prompt=["a", "b"], image=[picture(1), picture(2)], strength=1.0, generator=[seeded(1), seeded(2)]
        ),
    ),
    Case(
        "sd-image-tensor",
        "sd-v1",
        IMG2IMG,
        lambda p: call(p, image=torch.rand(2, 3, SIDE, SIDE, generator=seeded()), prompt=["a", "b"], strength=1.0),
    ),
    Case("sd-inpaint", "sd-v1", INPAINT, lambda p: sized(p, image=picture(), mask_image=picture(3).convert("L"))),
    Case("sd-controlnet", "sd-v1", with_controlnet, lambda p: sized(p, image=picture())),
    Case("sd-upscale-latents", "sd-v1", upscaled_by_latents, run_upscaled),
    Case(
        "sd-upscale-picture", "sd-v1", small.latent_upscaler, lambda p: call(p, image=picture(), guidance_scale=0)
    ),
    Case("sdxl-text", "sdxl", small.stable_diffusion_xl, sized),
    Case("sdxl-ensemble", "sdxl", base_and_refiner, run_ensemble),
    Case("sdxl-refined", "sdxl", base_and_refiner, run_refined),
    Case("sd3-text", "sd3", small.stable_diffusion_3, sized),
    Case(
        "sd3-image",
        "sd3",
        lambda vae: small.stable_diffusion_3(vae, diffusers.StableDiffusion3Img2ImgPipeline),
        lambda p: sized(p, image=picture(), strength=1.0),
    ),
    Case("flux-text", "flux", small.flux, sized),
    Case("flux-text-batch", "flux", small.flux, lambda p: sized(p, prompt=["a cat", "rain"])),
    Case(
        "flux-image",
        "flux",
        lambda vae: small.flux(vae, diffusers.FluxImg2ImgPipeline),
        lambda p: sized(p, image=picture(), strength=1.0),
    ),
]


def all_of(pipes: Any) -> tuple[Any, ...]:
    return pipes if isinstance(pipes, tuple) else (pipes,)


@contextlib.contextmanager
def connected(pipes: Any, server: str, **arguments: Any) -> Iterator[list[hybridge.client.pipelines.Connection]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(hybridge.connect(pipe, server, **arguments)) for pipe in all_of(pipes)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bitwise_the_local_pictures(case: Case, pipeline_server: str, local_vae: Callable[[str], Any]) -> None:
    """Of a pipeline that has its VAE, and of one that was loaded without."""
    pipes = case.build(local_vae(case.model))
    expected = case.run(pipes)
    assert float(expected.std()) > 0.01  # a picture, not a grey area
    for hybrid in (pipes, case.build(None)):
        with connected(hybrid, pipeline_server) as connections:
            assert {done.replaced[0].model for done in connections} == {case.model}
            assert all(isinstance(pipe.vae, hybridge.RemoteVAE) for pipe in all_of(hybrid))
            assert torch.equal(case.run(hybrid), expected)


def with_pixels_of(result: Any) -> np.ndarray[Any, Any]:
    """Whatever a pipeline returned, as one array."""
    if isinstance(result, list):
        return np.stack([np.asarray(picture) for picture in result])
    return np.asarray(result)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize(
    ("model", "build"),
    [
        ("sd-v1", small.stable_diffusion),
        ("sdxl", small.stable_diffusion_xl),
        ("sd3", small.stable_diffusion_3),
        ("flux", small.flux),
    ],
    ids=["sd", "sdxl", "sd3", "flux"],
)
def test_every_output_type(
    model: str,
    build: Callable[[Any], Any],
    output_type: str,
    pipeline_server: str,
    local_vae: Callable[[str], Any],
) -> None:
    expected = sized(build(local_vae(model)), output_type=output_type, num_inference_steps=1)
    pipe = build(None)
    with hybridge.connect(pipe, pipeline_server):
        found = sized(pipe, output_type=output_type, num_inference_steps=1)
    assert type(found) is type(expected)
    assert np.array_equal(with_pixels_of(found), with_pixels_of(expected))


@pytest.mark.parametrize(
    ("model", "build"), [("sd-v1", small.stable_diffusion), ("flux", small.flux)], ids=["sd", "flux"]
)
def test_a_callback_after_every_step(
    model: str, build: Callable[[Any], Any], pipeline_server: str, local_vae: Callable[[str], Any]
) -> None:
    """It sees every step's latents, may look at them through the VAE, and what it changes counts."""

    def run(pipe: Any) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []

        def look(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            latents = tensors["latents"]
            if latents.ndim == 4:
                seen.append(pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0])
            seen.append(latents)
            return {"latents": latents * 1.01}

        seen.append(sized(pipe, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["latents"]))
        return seen

    expected = run(build(local_vae(model)))
    pipe = build(local_vae(model))
    with hybridge.connect(pipe, pipeline_server):
        found = run(pipe)
    assert len(found) == len(expected) > 2
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_in_bfloat16_as_flux_is_run(pipeline_specs: dict[str, ModelSpec], local_vae: Callable[[str], Any]) -> None:
    expected = sized(small.flux(local_vae("flux")).to(dtype=torch.bfloat16))
    pipe = small.flux(None).to(dtype=torch.bfloat16)
    engine = bitwise_engine(pipeline_specs["flux"], "bfloat16")
    with running(create_app(LocalBackend({"flux": engine}))) as address, hybridge.connect(pipe, address) as done:
        assert pipe.vae.dtype is torch.bfloat16
        assert "computes in" not in str(done)
        found = sized(pipe)
    assert found.dtype is expected.dtype is torch.bfloat16
    assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # diffusers' own call of it
def test_in_float16_with_a_vae_that_must_not_be(
    pipeline_specs: dict[str, ModelSpec], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SDXL's original VAE: the pipeline moves it to float32 for the time of a call, encoding and decoding.

    The local one has been in float16 before, so its weights are such that nothing is lost on the way.
    """
    folder = str(tmp_path_factory.mktemp("upcast"))
    small_kl(4, seed=8, scaling_factor=0.13025, force_upcast=True).half().float().save_pretrained(folder)
    spec = replace(CATALOGUE["sdxl-original"], source=folder)

    def run(pipe: Any) -> Any:
        return call(pipe, image=picture(), num_inference_steps=4, strength=0.5)

    vae = diffusers.AutoencoderKL.from_pretrained(folder)
    expected = run(small.stable_diffusion_xl_refiner(vae).to(dtype=torch.float16))
    pipe = small.stable_diffusion_xl_refiner(None).to(dtype=torch.float16)
    engine = bitwise_engine(spec)
    with running(create_app(LocalBackend({spec.name: engine}))) as address, hybridge.connect(pipe, address):
        assert pipe.vae.dtype is torch.float16
        found = run(pipe)
        assert pipe.vae.dtype is torch.float16
    assert torch.equal(found, expected)


@pytest.mark.parametrize("model", [None, "taesd"], ids=["replaced", "none"])
def test_a_tiny_autoencoder(model: str | None, pipeline_server: str, local_vae: Callable[[str], Any]) -> None:
    expected = call(IMG2IMG(local_vae("taesd")), image=picture(), strength=1.0)
    pipe = IMG2IMG(local_vae("taesd") if model is None else None)
    with hybridge.connect(pipe, pipeline_server, model=model) as done:
        assert done.replaced[0].model == "taesd"
        found = call(pipe, image=picture(), strength=1.0)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("when", ["before", "after"])
def test_model_offloading(when: str, pipeline_server: str, local_vae: Callable[[str], Any]) -> None:
    expected = run_twice(small.stable_diffusion_xl(local_vae("sdxl")))
    pipe = small.stable_diffusion_xl(local_vae("sdxl"))
    if when == "before":
        pipe.enable_model_cpu_offload(device="cpu")
    with hybridge.connect(pipe, pipeline_server):
        if when == "after":
            pipe.enable_model_cpu_offload(device="cpu")
        assert hasattr(pipe.vae, "_hf_hook")
        found = run_twice(pipe)
    assert torch.equal(found, expected)


def test_sequential_offloading_of_the_vae(pipeline_server: str, local_vae: Callable[[str], Any]) -> None:
    """Not of the whole pipeline: accelerate cannot run weights that it put on "meta" from a CPU."""
    latents = torch.randn(1, 4, 8, 8, generator=seeded())
    with torch.no_grad():
        expected = local_vae("sd-v1").decode(latents).sample
    pipe = small.stable_diffusion(local_vae("sd-v1"))
    with hybridge.connect(pipe, pipeline_server):
        pipe.enable_sequential_cpu_offload(device="cpu")
        assert pipe.vae.device.type == "meta"
        assert pipe._execution_device.type == "cpu"
        assert torch.equal(pipe.vae.decode(latents).sample, expected)
        pipe.remove_all_hooks()
        assert pipe.vae.device.type == "cpu"


def run_twice(pipe: Any) -> Any:
    """The second call finds what the first one's hooks left."""
    sized(pipe, num_inference_steps=1)
    return sized(pipe)


def test_another_pipeline_of_the_same_parts(pipeline_server: str, local_vae: Callable[[str], Any]) -> None:
    base = small.stable_diffusion(local_vae("sd-v1"))
    image_to_image = diffusers.StableDiffusionImg2ImgPipeline
    expected = call(image_to_image.from_pipe(base), image=picture(), strength=1.0)
    with hybridge.connect(base, pipeline_server):
        other = image_to_image.from_pipe(base)
        assert other.vae is base.vae
        found = call(other, image=picture(), strength=1.0)
    assert torch.equal(found, expected)
