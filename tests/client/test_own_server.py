"""The client against our own server, on a socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybridge.client import AsyncClient, Client, ServerWarning, remote_decode
from hybridge.errors import ServerRefused
from hybridge.protocol import DecodeRequest, WireTensor

LATENTS = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(13))


def test_what_it_serves_and_that_it_lives(server: str) -> None:
    with Client(server) as client:
        assert {"sd-v1", "sdxl", "flux", "taesd"} <= {str(model["name"]) for model in client.models()}
        assert client.health() == {"status": "ok"}


def test_a_photograph_there_and_back(server: str, photograph: Path, tmp_path: Path) -> None:
    path = tmp_path / "part.png"
    with Image.open(photograph) as whole:
        part = whole.crop((0, 0, 100, 64))
    part.save(path)
    with Client(server) as client:
        with pytest.warns(ServerWarning, match="resized to 96x64"):
            latents = client.encode(path, model="sd-v1")
        with pytest.warns(ServerWarning, match="resized to 96x64"):
            assert torch.equal(client.encode(part, model="sd-v1"), latents)
        assert client.decode(latents, model="sd-v1").size == (96, 64)


def test_a_batch_is_the_same_as_files_and_as_pixels(server: str) -> None:
    with Client(server) as client:
        pictures = client.decode(LATENTS, model="sd-v1", scaling_factor=0.18215)
        pixels = client.decode(LATENTS, model="sd-v1", scaling_factor=0.18215, output="pixels")
    apart = np.stack([np.asarray(picture) for picture in pictures]).astype(int) - pixels.numpy()
    assert abs(apart).max() <= 1  # a batch of two is not always summed in the order of a batch of one


def test_packed_latents_in_bfloat16(server: str) -> None:
    packed = torch.zeros(1, 6 * 4, 64, dtype=torch.bfloat16)
    with Client(server) as client:
        assert client.decode(packed, model="flux", height=96, width=64).size == (64, 96)
    assert remote_decode(f"{server}/v1/flux/decode", packed, height=96, width=64).size == (64, 96)


def test_async_is_the_same(server: str) -> None:
    async def decode() -> object:
        async with AsyncClient(server) as client:
            return await client.decode(LATENTS, model="taesd", output="signed")

    with Client(server) as client:
        assert torch.equal(asyncio.run(decode()), client.decode(LATENTS, model="taesd", output="signed"))


def test_a_reply_says_what_the_server_did(server: str) -> None:
    latents = WireTensor.from_numpy(np.zeros((1, 16, 4, 4), np.float32))
    with Client(server) as client:
        reply = client.send(DecodeRequest(latents))
    assert reply.model == "flux"
    assert reply.inferred
    assert reply.timings_ms
    assert (reply.bytes_up, reply.bytes_down) == (latents.nbytes, len(reply.file()))


def test_refusals_arrive_with_their_reason(server: str) -> None:
    with Client(server) as client, pytest.raises(ServerRefused, match="sd-v1") as caught:
        client.decode(LATENTS, model="sd-v2")
    assert (caught.value.status, caught.value.code) == (404, "UnknownModel")


def test_one_unbatched_item_with_the_size_that_clients_send_along(server: str) -> None:
    """Three axes with a height and a width are not always packed: here the first is the channels."""
    latents = torch.randn(16, 4, 6, generator=torch.Generator().manual_seed(3))
    with Client(server) as client:
        one = client.decode(latents, model="flux", height=32, width=48)
        same = client.decode(latents[None], model="flux")
    assert one.size == (48, 32)
    assert one.tobytes() == same.tobytes()


def test_a_16_bit_picture_of_mode_i(server: str) -> None:
    grey = Image.new("I", (16, 16), 40_000)
    with Client(server) as client:
        latents = client.encode(grey, model="sd-v1")
        expected = client.encode(Image.new("L", (16, 16), round(40_000 / 257)), model="sd-v1")
    assert torch.equal(latents, expected)
