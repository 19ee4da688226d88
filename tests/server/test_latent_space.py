"""Server, preview, fallback and engine scale latents by one convention, in the order of diffusers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from hybridge.client import Client
from hybridge.client.fallback import LocalVae
from hybridge.engine import Engine, EngineOptions, resolve
from hybridge.errors import RequestError
from hybridge.models import LATENT_RGB, latent_space
from hybridge.protocol import DecodeRequest, EncodeRequest, Scaling, WireTensor
from hybridge.protocol.torch import from_torch, to_torch
from hybridge.server.app import create_app
from hybridge.server.http.preview import approximate
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

#: Playground v2.5's.
MEAN, STD, SCALE = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299], 0.5
MODEL = Scaling("model")


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)).clamp(-1, 1)


LATENTS, IMAGE = drawn(1, 4, 4, 4), drawn(1, 3, 32, 32)


def columns() -> tuple[torch.Tensor, torch.Tensor]:
    """As StableDiffusionXLPipeline makes them."""
    return torch.tensor(MEAN).view(1, 4, 1, 1), torch.tensor(STD).view(1, 4, 1, 1)


@dataclass
class Scene:
    engine: Engine
    vae: AutoencoderKL
    client: Client


@pytest.fixture(scope="module")
def scene(specs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """An SDXL-like VAE with statistics for each channel, served under a name of its own."""
    folder = Path(shutil.copytree(specs["sdxl"].source, tmp_path_factory.mktemp("statistics") / "vae"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"latents_mean": MEAN, "latents_std": STD, "scaling_factor": SCALE}
    (folder / "config.json").write_text(json.dumps(config))
    engine = Engine.load(resolve(f"playground={folder}"), EngineOptions(device="cpu", exactness="bitwise"))
    vae = AutoencoderKL.from_pretrained(folder)
    with (
        running(create_app(LocalBackend({"playground": engine}))) as address,
        Client(address) as client,
    ):
        yield Scene(engine, vae, client)


def by_server(scene: Scene) -> tuple[Any, Any]:
    picture = scene.client.decode(LATENTS, do_scaling=True, output="signed")
    return picture, scene.client.encode(IMAGE, do_scaling=True, value_range="signed")


def by_fallback(scene: Scene) -> tuple[Any, Any]:
    local = LocalVae(scene.vae)
    picture = local(DecodeRequest(from_torch(LATENTS), MODEL, output="signed"))
    latents = local(EncodeRequest(from_torch(IMAGE), MODEL, value_range="signed"))
    return to_torch(picture.tensor), to_torch(latents.tensor)


def by_engine(scene: Scene) -> tuple[Any, Any]:
    own = scene.engine.spec.normalisation
    return scene.engine.decode(LATENTS, sent=own), scene.engine.encode(IMAGE, wanted=own, value_range="signed")


@pytest.mark.parametrize("way", [by_server, by_fallback, by_engine])
def test_statistics_for_each_channel_are_applied_as_diffusers_does(
    scene: Scene, way: Callable[[Scene], tuple[Any, Any]]
) -> None:
    mean, std = columns()
    with torch.inference_mode():
        picture = scene.vae.decode(LATENTS * std / SCALE + mean, return_dict=False)[0]
        latents = (scene.vae.encode(IMAGE).latent_dist.mode() - mean) * SCALE / std
    decoded, encoded = way(scene)
    assert torch.equal(decoded, picture)
    assert torch.equal(encoded, latents)


def test_a_preview_applies_them_too(scene: Scene) -> None:
    mean, std = columns()
    spec, rgb = scene.engine.spec, LATENT_RGB["sdxl"]
    sent = [DecodeRequest(from_torch(LATENTS), MODEL), DecodeRequest(from_torch(LATENTS * std / SCALE + mean))]
    pipelines, own = (approximate(request, spec, rgb).to_numpy().astype(int) for request in sent)
    assert np.abs(pipelines - own).max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["playground", "flux"])
def test_arrays_and_tensors_are_scaled_and_unpacked_alike(specs, scene: Scene, name: str, dtype: Any) -> None:
    spec = scene.engine.spec if name == "playground" else specs["flux"]
    latents = drawn(1, spec.latent_channels, 4, 4).to(dtype)
    own = spec.normalisation
    there = latent_space.normalise(latents, own)
    assert there.dtype == dtype
    assert torch.allclose(latent_space.denormalise(there, own), latents, atol=0.1)
    if dtype == torch.float32:
        assert np.array_equal(latent_space.normalise(latents.numpy(), own), there.numpy())
        assert np.array_equal(
            latent_space.denormalise(latents[0].numpy(), own), latent_space.denormalise(latents[0], own)
        )


def test_one_shift_factor_cannot_stand_for_a_mean_of_each_channel(scene: Scene) -> None:
    tensor = WireTensor("float32", (1, 4, 4, 4), bytes(256))
    request = DecodeRequest(tensor, Scaling("model", shift_factor=0.1), output="signed")
    with pytest.raises(RequestError, match="mean for each latent channel"):
        LocalVae(scene.vae)(request)
    same = Scaling("model", shift_factor=0.0)  # what the model has anyway
    assert latent_space.normalisation_of(scene.engine.spec, same.by, None, 0.0) == scene.engine.spec.normalisation
