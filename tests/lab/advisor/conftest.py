"""The tiny pipeline as people have one, loaded from a folder, and a server with a VAE that fits it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
)
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from hybridge.engine import Engine, EngineOptions
from hybridge.lab.studies.tiny_pipeline import save_tiny, tiny_base, tiny_vae
from hybridge.models import CATALOGUE
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base and what goes with it on disk, in the hub's layout."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FLUX.1 with layers of 8 to 32 numbers and random weights, in the hub's layout."""
    torch.manual_seed(0)
    clip = tiny_base()
    vae = tiny_vae(force_upcast=False)
    vae.register_to_config(shift_factor=0.1)
    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in "▁aeghimnorstu")]
    t5 = T5Config(
        vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu"
    )
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=clip.text_encoder.config.hidden_size,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    folder = tmp_path_factory.mktemp("flux")
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=clip.text_encoder,
        tokenizer=clip.tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=T5TokenizerFast(vocab=letters, model_max_length=512),
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def pipe(tiny_folder: Path) -> StableDiffusionXLPipeline:
    """A fresh one."""
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_folder / "base", add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def untouched() -> StableDiffusionXLPipeline:
    """One for all, to be refused."""
    return tiny_base()


@pytest.fixture(scope="session")
def tiny_server(tiny_folder: Path) -> Iterator[str]:
    """A server with the tiny base's VAE, under SDXL's name."""
    spec = replace(CATALOGUE["sdxl-original"], source=str(tiny_folder / "base"), subfolder="vae")
    engine = Engine.load(spec, EngineOptions(device="cpu"))
    with running(create_app(LocalBackend({spec.name: engine}))) as address:
        yield address
