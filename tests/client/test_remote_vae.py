"""``RemoteVAE`` as a module: what it returns, what it weighs, and what ``.to()`` and slicing do."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import torch
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from pipelines import load_small_pipelines

import hybridge
from hybridge.client import Client
from hybridge.client.served_vaes import read_models
from hybridge.engine import Engine
from hybridge.errors import BadAnswer, ServerRefused
from hybridge.protocol import TensorAnswer, WireTensor, write_answer
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running
from hybridge.server.settings import Settings

small = load_small_pipelines()


@pytest.fixture
def remote(server: str) -> Iterator[hybridge.RemoteVAE]:
    with Client(server) as client:
        (model,) = (model for model in read_models(client.models(), server) if model.name == "sd-v1")
        yield hybridge.RemoteVAE(client, model)


def test_what_it_returns(remote: hybridge.RemoteVAE) -> None:
    image, latents = torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 2, 2)
    assert isinstance(remote.encode(image), AutoencoderKLOutput)
    (posterior,) = remote.encode(image, return_dict=False)
    assert isinstance(posterior, DiagonalGaussianDistribution)
    assert posterior.parameters.shape == (1, 8, 2, 2)
    assert isinstance(remote.decode(latents, generator=torch.Generator()), DecoderOutput)
    (sample,) = remote.decode(latents, return_dict=False)
    assert sample.shape == remote(image).sample.shape == (1, 3, 16, 16)
    assert torch.equal(remote(image).sample, remote.decode(posterior.mode()).sample)


def test_a_draw_uses_the_callers_generator(remote: hybridge.RemoteVAE) -> None:
    posterior = remote.encode(torch.zeros(1, 3, 16, 16)).latent_dist
    draws = [posterior.sample(torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_it_has_a_config_a_dtype_and_a_device_and_weighs_nothing(remote: hybridge.RemoteVAE) -> None:
    assert remote.config.scaling_factor == 0.18215
    assert remote.config.block_out_channels == [8, 8, 16, 16]
    assert sum(parameter.numel() for parameter in remote.parameters()) == 0
    assert (remote.dtype, remote.device) == (torch.float32, torch.device("cpu"))
    remote.to("meta", torch.float16)
    assert (remote.dtype, remote.device.type) == (torch.float16, "meta")
    remote.to(dtype=torch.bfloat16)
    assert next(remote.post_quant_conv.parameters()).dtype is torch.bfloat16
    assert f"sd-v1 of {remote._client.server}" in repr(remote)


def test_its_dtype_is_what_it_returns(remote: hybridge.RemoteVAE) -> None:
    exact = remote.decode(torch.ones(1, 4, 2, 2)).sample
    remote.to(dtype=torch.bfloat16)
    assert torch.equal(remote.decode(torch.ones(1, 4, 2, 2)).sample, exact.bfloat16())
    assert remote.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mean.dtype is torch.bfloat16


def test_tiling_and_slicing(remote: hybridge.RemoteVAE) -> None:
    latents = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    apart = torch.cat([remote.decode(item).sample for item in latents.split(1)])
    remote.enable_tiling()
    remote.enable_slicing()
    assert remote.use_tiling
    assert remote.use_slicing
    assert torch.equal(remote.decode(latents).sample, apart)
    remote.disable_tiling()
    remote.disable_slicing()
    assert not remote.use_tiling
    assert not remote.use_slicing


def test_it_can_be_given_to_a_pipeline_from_the_start(remote: hybridge.RemoteVAE) -> None:
    pipe = small.stable_diffusion(remote)
    assert pipe("a cat", num_inference_steps=1, height=64, width=64).images[0].size == (64, 64)


def test_a_refusal_in_the_middle_of_a_picture(engines: dict[str, Engine]) -> None:
    settings = Settings(max_batch=1)
    pipe = small.stable_diffusion(None)
    run = {"prompt": ["a", "b"], "height": 64, "width": 64, "num_inference_steps": 1}
    with running(create_app(LocalBackend(engines), settings)) as address, hybridge.connect(pipe, address):
        with pytest.raises(ServerRefused, match=f"{address} answered 413: the batch is too large"):
            pipe(**run)
        pipe.vae.enable_slicing()
        assert len(pipe(**run).images) == 2


def test_an_answer_of_another_size(server: str) -> None:
    """A model that was exchanged on the server since, say."""
    wrong = write_answer(TensorAnswer(WireTensor("float32", (4,), bytes(16))))
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=wrong.headers, content=wrong.body))
    with Client(server) as real:
        model = read_models(real.models(), server)[0]
    with (
        Client("http://box", transport=transport) as client,
        pytest.raises(BadAnswer, match="http://box: the server answered with another tensor"),
    ):
        hybridge.RemoteVAE(client, model).decode(torch.zeros(1, 4, 2, 2))
