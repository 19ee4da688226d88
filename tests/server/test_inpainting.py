"""AsymmetricAutoencoderKL is shown a picture and a mask, through a server as beside the pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from vae_classes.rows import ROWS

from hybridge.client import AsyncClient, Client
from hybridge.engine import Engine, EngineOptions, resolve
from hybridge.errors import RequestError, ServerRefused, TooLarge
from hybridge.protocol.receipt import find_receipt
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

SIDE = 32


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    root, engines = tmp_path_factory.mktemp("models"), {}
    for name in ("asymmetric", "playground-v2.5"):
        next(row for row in ROWS if row.name == name).make().save_pretrained(root / name)
        options = EngineOptions(device="cpu", exactness="bitwise")
        engines[name] = Engine.load(resolve(f"{name}={root / name}"), options)
    return engines


@pytest.fixture(scope="module")
def server(engines: dict[str, Engine]) -> Iterator[str]:
    with running(create_app(LocalBackend(engines))) as address:
        yield address


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def sent() -> dict[str, torch.Tensor]:
    """Two latents, with pictures and masks of their own."""
    mask = (numbers(2, 1, SIDE, SIDE, seed=2) > 0).float()
    return {"latents": numbers(2, 4, 4, 4), "image": numbers(2, 3, SIDE, SIDE, seed=1).clamp(-1, 1), "mask": mask}


@torch.inference_mode()
def own(engines: dict[str, Engine], latents: torch.Tensor, **shown: torch.Tensor) -> torch.Tensor:
    module: Any = engines["asymmetric"].module
    return module.decode(latents / module.config.scaling_factor, return_dict=False, **shown)[0]


def test_the_picture_is_that_of_the_class(server: str, engines: dict[str, Engine], sent: dict[str, Any]) -> None:
    with Client(server) as client:
        found = client.decode(**sent, model="asymmetric", do_scaling=True, output="signed")
        plain = client.decode(sent["latents"], model="asymmetric", do_scaling=True, output="signed")
    assert torch.equal(found, own(engines, **sent))
    assert torch.equal(plain, own(engines, sent["latents"]))
    assert not torch.equal(found, plain)


def test_one_picture_and_one_mask_for_all(server: str, engines: dict[str, Engine], sent: dict[str, Any]) -> None:
    shown = {name: sent[name][:1] for name in ("image", "mask")}
    with Client(server) as client:
        found = client.decode(sent["latents"], **shown, model="asymmetric", do_scaling=True, output="signed")
    both = {name: torch.cat([tensor, tensor]) for name, tensor in shown.items()}
    assert torch.equal(found, own(engines, sent["latents"], **both))


def test_pictures_and_arrays_of_bytes(server: str, engines: dict[str, Engine]) -> None:
    """The picture as Pillow has it, and the mask as boolean numbers; of two latents each gets a picture file."""
    latents = numbers(2, 4, 4, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    white = np.random.default_rng(1).random((SIDE, SIDE)) > 0.5
    image = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 * 2 - 1).expand(2, -1, -1, -1)
    mask = torch.from_numpy(white).float().expand(2, 1, -1, -1)
    expected = own(engines, latents, image=image, mask=mask)
    options: dict[str, Any] = {"model": "asymmetric", "do_scaling": True, "metadata": True}
    grey = Image.fromarray(white.astype("u1") * 255)

    async def both() -> tuple[list[Image.Image], Image.Image]:
        async with AsyncClient(server) as client:
            several = await client.decode(latents, image=Image.fromarray(pixels), mask=white, **options)
            return several, await client.decode(latents[:1], image=pixels[None], mask=grey, **options)

    pictures, from_grey = asyncio.run(both())
    wanted = ((expected * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1) * 255).round().byte().numpy()
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures]), wanted)
    assert np.array_equal(np.asarray(from_grey), wanted[0])
    receipt = find_receipt(pictures[0].info["hybridge"], None)
    assert receipt is not None
    assert set(receipt.facts) >= {"latents", "image", "mask"}


def refused(server: str, model: str = "asymmetric", **sent: Any) -> ServerRefused:
    with Client(server) as client, pytest.raises(ServerRefused) as error:
        client.decode(**sent, model=model, do_scaling=True, output="signed")
    return error.value


def test_what_does_not_belong_together_is_refused(server: str, sent: dict[str, torch.Tensor]) -> None:
    small, four = sent["image"][..., :24], torch.cat([sent["image"], sent["mask"]], 1)
    for other in ({"image": small}, {"image": four}, {"mask": small[:, :1]}, {"mask": sent["image"]}):
        error = refused(server, **(sent | other))
        assert (error.status, error.cause) == (400, "inpainting-size"), error
        assert "expected image [1 or 2, 3, 32, 32], mask [1 or 2, 1, 32, 32]" in str(error)
    three = torch.cat([sent["image"], sent["image"][:1]])
    assert refused(server, **(sent | {"image": three})).cause == "inpainting-size"
    error = refused(server, "playground-v2.5", **sent)
    assert "the decoder of playground-v2.5 takes no image and mask" in str(error)
    with pytest.raises(RequestError, match="mask alone"), Client(server) as client:
        client.decode(sent["latents"], mask=sent["mask"])


def test_numbers_that_no_mask_has_are_refused(server: str, sent: dict[str, torch.Tensor]) -> None:
    assert refused(server, **(sent | {"mask": sent["mask"] * 255})).cause == "no-mask"
    assert refused(server, **(sent | {"mask": sent["mask"].byte()})).cause == "no-mask"
    assert refused(server, **(sent | {"mask": sent["mask"] * 2 - 1})).cause == "no-mask"
    assert refused(server, **(sent | {"mask": sent["mask"].log()})).cause == "not-finite"
    assert refused(server, **(sent | {"image": sent["image"] / 0})).cause == "not-finite"


def test_sizes_are_checked_before_anything_is_computed(server: str) -> None:
    """A mask for latents that would be far beyond the limits."""
    shown = {"image": torch.zeros(1, 3, 8, 8), "mask": torch.zeros(8, 8)}
    body = save({"latents": torch.zeros(1, 4, 900, 900), **shown})
    address = f"{server}/v1/asymmetric/decode"
    response = httpx.post(address, content=body, headers={"content-type": "application/x-safetensors"})
    assert (response.status_code, response.json()["cause"]) == (400, "inpainting-size")


def test_the_picture_counts_in_the_plan(engines: dict[str, Engine], sent: dict[str, torch.Tensor]) -> None:
    engine = engines["asymmetric"]
    plain, shown = (engine.plan("decode", 2, SIDE, SIDE, inpaints=inpaints) for inpaints in (False, True))
    assert shown.peak_bytes > plain.peak_bytes
    assert shown.flops > plain.flops
    with pytest.raises(TooLarge) as refusal:
        engine.decode(**sent, budget_bytes=shown.peak_bytes - 1)
    assert refusal.value.least_bytes == shown.peak_bytes
    engine.decode(sent["latents"], budget_bytes=plain.peak_bytes)


def test_the_model_follows_from_the_picture(server: str, sent: dict[str, torch.Tensor]) -> None:
    with Client(server) as client:
        assert client.decode(**sent, do_scaling=True, output="signed").shape == (2, 3, SIDE, SIDE)
        with pytest.raises(ServerRefused, match="several models"):
            client.decode(sent["latents"], do_scaling=True, output="signed")
