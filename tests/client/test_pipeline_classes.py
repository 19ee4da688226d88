"""What a pipeline's class makes of its VAE in ``__init__``, and which VAEs it takes at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
from conftest import small_kl
from pipelines import bitwise_engine, load_small_pipelines

import hybridge
from hybridge.errors import Mismatch
from hybridge.models import CATALOGUE
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

small = load_small_pipelines()


def of_nothing(pipeline: Any, **parts: Any) -> Any:
    """A pipeline without any part but these."""
    return pipeline(**{**dict.fromkeys(pipeline._get_init_keys(pipeline) - {"self"}), **parts})


def prx() -> Any:
    """A transformer for 16 latent channels."""
    return diffusers.PRXTransformer2DModel(
        in_channels=16, context_in_dim=8, hidden_size=16, num_heads=2, depth=1, axes_dim=[4, 4]
    )


@pytest.mark.parametrize("model", [None, "flux"])
@pytest.mark.parametrize("name", ["WanPipeline", "SanaPipeline", "QwenImagePipeline", "Flux2Pipeline"])
def test_a_class_that_takes_no_such_vae(name: str, model: str | None, server: str) -> None:
    """Its call would fail in the middle, for want of frames or statistics that a VAE of pictures does not have."""
    pipe = of_nothing(getattr(diffusers, name))
    with pytest.raises(
        Mismatch,
        match=rf"{name}.*AutoencoderKL where Autoencoder(?!KL is)\w+ is needed",
    ):
        hybridge.connect(pipe, server, model=model)


def test_pictures_with_other_channels_than_colours(server: str) -> None:
    """LDM3D's have depth beside them."""
    pipe = small.stable_diffusion(small.vae(4, in_channels=6, out_channels=6))
    with pytest.raises(
        Mismatch, match=r"saw AutoencoderKL with in_channels 6 and out_channels 6.*expected 3 of both"
    ):
        hybridge.connect(pipe, server)


def test_what_the_class_fills_in(server: str) -> None:
    """Bria's sets the shift of its VAE's config to 0 where it is None, and adds it later."""
    pipe = of_nothing(diffusers.BriaPipeline, vae=small_kl(4))
    with hybridge.connect(pipe, server):
        assert pipe.vae.config.shift_factor == 0


@pytest.mark.filterwarnings("ignore:.*LoraLoaderMixin:FutureWarning")  # PRX's own
@pytest.mark.parametrize(
    ("build", "factor", "processors"),
    [
        (lambda: of_nothing(diffusers.Lumina2Pipeline), 8, 16),  # always, whatever its VAE
        (lambda: small.flux(None), 4, 8),
        (lambda: of_nothing(diffusers.PRXPipeline, transformer=prx()), 4, 4),  # without a VAE it has no processor
    ],
    ids=["lumina2", "flux", "prx"],
)
def test_each_class_makes_of_another_factor_what_it_would_of_a_local_vae(
    build: Any, factor: int, processors: int, tmp_path: Path
) -> None:
    small.vae(16, seed=6, levels=3).save_pretrained(tmp_path)
    spec = replace(CATALOGUE["flux"], name="fourfold", source=str(tmp_path), subfolder=None, spatial_factor=4)
    pipe = build()
    before = pipe.image_processor
    with (
        running(create_app(LocalBackend({"fourfold": bitwise_engine(spec)}))) as address,
        hybridge.connect(pipe, address, model="fourfold"),
    ):
        assert pipe.vae_scale_factor == factor
        assert pipe.image_processor.config.vae_scale_factor == processors
    assert pipe.image_processor is before
