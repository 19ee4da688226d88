"""Which VAE a pipeline needs: every class of the installed diffusers, and whoever names a model has decided."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
from conftest import small_kl, small_tiny
from pipelines import bitwise_engine, load_small_pipelines

import hybridge
from hybridge.errors import Mismatch
from hybridge.models import CATALOGUE, Normalisation, model_of_pipeline
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

small = load_small_pipelines()

#: Which VAE the checkpoints of a package of diffusers' pipelines were published with, as far as it is in the
#: catalogue: by their model cards, and by the factors in their vae/config.json.
PACKAGES = {
    "animatediff": {"sd-v1", "sdxl"},
    "aura_flow": {"sdxl"},
    "chroma": {"flux"},
    "controlnet": {"sd-v1", "sdxl"},
    "controlnet_hunyuandit": {"sdxl"},
    "controlnet_sd3": {"sd3"},
    "deprecated": {"sd-v1", "sdxl"},
    "flux": {"flux"},
    "hidream_image": {"flux"},
    "hunyuandit": {"sdxl"},
    "kolors": {"sdxl"},
    "latent_consistency_models": {"sd-v1"},
    "lumina2": {"flux"},
    "omnigen": {"sdxl"},
    "pag": {"sd-v1", "sdxl", "sd3"},
    "pixart_alpha": {"sd-v1", "sdxl"},
    "stable_diffusion": {"sd-v1"},
    "stable_diffusion_3": {"sd3"},
    "stable_diffusion_xl": {"sdxl"},
    "t2i_adapter": {"sd-v1", "sdxl"},
    "visualcloze": {"flux"},
    "z_image": {"flux"},
}

#: AutoencoderKL, but none of the catalogue's: another factor, depth or sound as a channel, statistics of its own,
#: or nothing that says which.
OTHERS = (
    "AudioLDM",
    "Bria",
    "CogView",
    "Glm",
    "I2VGen",
    "Kandinsky",
    "Latte",
    "Marigold",
    "MusicLDM",
    "StableDiffusionDepth2Img",
    "StableDiffusionLDM3D",
    "StableDiffusionUpscale",
    "TextToVideoSD",
    "UniDiffuser",
    "Versatile",
    "VideoToVideoSD",
)


def classes() -> list[Any]:
    """Every pipeline of diffusers that takes a VAE; those whose libraries are missing have no signature."""
    found = []
    for name in dir(diffusers):
        member = getattr(diffusers, name) if name.endswith("Pipeline") else None
        is_pipeline = isinstance(member, type) and issubclass(member, diffusers.DiffusionPipeline)
        if is_pipeline and "vae" in inspect.signature(member.__init__).parameters:
            found.append(member)
    return found


@pytest.mark.filterwarnings("ignore")  # some modules of diffusers warn when they are imported
def test_every_class_of_diffusers_has_the_right_family_or_none() -> None:
    seen = classes()
    assert len(seen) > 150
    for pipeline in seen:
        family = model_of_pipeline(base.__name__ for base in pipeline.__mro__)
        if family is None:
            continue
        name, package = pipeline.__name__, pipeline.__module__.split(".")[2]
        vae = str(inspect.signature(pipeline.__init__).parameters["vae"].annotation)
        assert vae.rstrip("'>").rpartition(".")[2] in ("AutoencoderKL", "AsymmetricAutoencoderKL"), name
        assert family in PACKAGES[package], name
        assert ("XL" in name) <= (family == "sdxl"), name
        assert not name.startswith(OTHERS), name


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (["KolorsPipeline", "DiffusionPipeline", "StableDiffusionMixin", "StableDiffusionLoraLoaderMixin"], "sdxl"),
        (["AnimateDiffSDXLPipeline", "DiffusionPipeline", "StableDiffusionMixin"], "sdxl"),
        (["BriaFiboPipeline", "DiffusionPipeline", "FluxLoraLoaderMixin"], None),
        (["AudioLDMPipeline", "DiffusionPipeline", "StableDiffusionMixin"], None),
        (["StableDiffusionLDM3DPipeline", "DiffusionPipeline", "StableDiffusionMixin"], None),
        (["StableDiffusionOfTomorrowPipeline", "DiffusionPipeline"], None),
        (["StableDiffusionMixin", "FluxLoraLoaderMixin"], None),
        (["Mine", "StableDiffusionXLControlNetPipeline", "DiffusionPipeline"], "sdxl"),
    ],
)
def test_mixins_say_nothing(names: list[str], family: str | None) -> None:
    assert model_of_pipeline(names) == family


def test_what_contradicts_the_class_is_asked_for(server: str) -> None:
    playground = small.stable_diffusion_xl(None)
    playground.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(Mismatch, match=r"nothing tells which VAE.*model="):
        hybridge.connect(playground, server)
    with hybridge.connect(playground, server, model="sdxl"):
        assert playground.vae.model == "sdxl"


@pytest.mark.parametrize(
    ("build", "model", "reason"),
    [
        (
            small.stable_diffusion_xl,
            "sd-v1",
            "its scaling factor 0.18215 is used, where most models of StableDiffusionXLPipeline have",
        ),
        (small.stable_diffusion_xl, "sdxl", "asked for"),
        (small.stable_diffusion_3, "flux", "have scaling factor 1.5305 and shift 0.0609"),
    ],
)
def test_whoever_names_a_model_has_decided(build: Any, model: str, reason: str, server: str) -> None:
    with hybridge.connect(build(None), server, model=model) as done:
        assert done.replaced[0].model == model
        assert reason in done.replaced[0].reason


def test_marigolds_denoiser_takes_two_latents_side_by_side(server: str) -> None:
    class Marigold(diffusers.DiffusionPipeline):  # type: ignore[misc]
        def __init__(self, vae: Any, unet: Any) -> None:
            super().__init__()
            self.register_modules(vae=vae, unet=unet)

    pipe = Marigold(None, small.stable_diffusion(None).unet)
    pipe.unet.register_to_config(in_channels=12, out_channels=8)
    with hybridge.connect(pipe, server, model="sd-v1"):
        assert pipe.vae.model == "sd-v1"
    with pytest.raises(Mismatch, match="16 latent channels"):
        hybridge.connect(pipe, server, model="flux")


def test_vaes_under_names_of_their_own(tmp_path: Any) -> None:
    own = small_kl(4, scaling_factor=0.5, latents_mean=[0.1] * 4, latents_std=[2.0] * 4)
    own.save_pretrained(tmp_path / "ground")
    small_tiny(4).save_pretrained(tmp_path / "tiny")
    ground = replace(
        CATALOGUE["sdxl"],
        name="ground",
        source=str(tmp_path / "ground"),
        normalisation=Normalisation(0.5, 0.0, (0.1,) * 4, (2.0,) * 4),
    )
    tiny = replace(
        CATALOGUE["taesd"], name="small", source=str(tmp_path / "tiny"), normalisation=Normalisation(), parent=None
    )
    engines = {spec.name: bitwise_engine(spec) for spec in (ground, tiny)}
    with running(create_app(LocalBackend(engines))) as address:
        for model in (None, "ground"):
            with hybridge.connect(small.stable_diffusion_xl(own), address, model=model) as done:
                assert done.replaced[0].model == "ground"
        pipe = small.stable_diffusion(small_tiny(4))
        with hybridge.connect(pipe, address, model="small"):
            assert pipe.vae.model == "small"
        with pytest.raises(Mismatch, match='Try: model="small"'):
            hybridge.connect(pipe, address)


def test_pipelines_inside_of_a_pipeline_get_the_vae_too(server: str) -> None:
    pipe = small.stable_diffusion(None)
    pipe.generation_pipe = small.stable_diffusion(None)
    other = small.stable_diffusion(small_kl(4))
    pipe.another = other
    own = other.vae
    with hybridge.connect(pipe, server):
        assert pipe.generation_pipe.vae is pipe.vae is not None
        assert other.vae is own
    assert pipe.generation_pipe.vae is pipe.vae is None


def test_what_a_server_says_of_its_models_cannot_be_numbers_beyond_numbers() -> None:
    from hybridge.client.served_vaes import read_models
    from hybridge.errors import BadAnswer

    document = {"name": "m", "class": "AutoencoderKL", "config": {"a": 1}, "latent_channels": float("inf")}
    with pytest.raises(BadAnswer):
        read_models([{**document, "spatial_factor": 8, "latents_mean": None, "latents_std": None}], "there")
    assert read_models([{"class": ["x"]}], "there") == []


def test_a_stand_in_without_a_denoiser_is_asked_for(server: str) -> None:
    pipe = SimpleNamespace(vae=None, _internal_dict={})
    with pytest.raises(Mismatch, match="nothing tells"):
        hybridge.connect(pipe, server)


def test_a_server_with_another_factor_says_both_ways_out(tmp_path: Any) -> None:
    """As the starter's: only the user knows what the pipeline was trained with."""
    small_kl(4, scaling_factor=0.5).save_pretrained(tmp_path)
    own = replace(CATALOGUE["sd-v1"], name="own", source=str(tmp_path), normalisation=Normalisation(0.5))
    pipe = small.stable_diffusion(None)
    with running(create_app(LocalBackend({"own": bitwise_engine(own)}))) as address:
        said = r'whose VAE is None\. Try: `hybridge serve sd-v1` .*, or model="own", if'
        with pytest.raises(Mismatch, match=said):
            hybridge.connect(pipe, address)
        with hybridge.connect(pipe, address, model="own") as done:
            assert "its scaling factor 0.5 is used" in done.replaced[0].reason
