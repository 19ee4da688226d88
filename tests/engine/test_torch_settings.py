"""What other code sets in torch, for the process or for a thread, changes no picture and no weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest
import torch
from conftest import small_kl

from hybridge.engine.exact import ExactVAE, exact
from hybridge.engine.planning.plan import Mode

STRIPS: tuple[Mode, ...] = ("strips", "lean", "recompute")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    **{f"default {dtype}": lambda dtype=dtype: default_dtype(dtype) for dtype in (torch.bfloat16, torch.float16)},
    "default torch.float64": lambda: default_dtype(torch.float64),
    "default device meta": lambda: default_device("meta"),
    "default device cuda": lambda: default_device("cuda"),  # nothing may be made there, so there need be none
    "with a device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "deterministic": deterministic,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def made(dtype: torch.dtype) -> tuple[ExactVAE, torch.Tensor, torch.Tensor]:
    """A model, latents and a picture, made before anything is set."""
    vae = exact(small_kl(4).to(dtype).requires_grad_(False))
    vae.modes = STRIPS
    noise = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 17, 20, generator=noise, dtype=torch.float32).to(dtype)
    picture = torch.rand(1, 3, 136, 160, generator=noise, dtype=torch.float32).to(dtype)
    return vae, latents, picture


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_caller_may_set_what_it_likes(name: str, dtype: torch.dtype) -> None:
    vae, latents, picture = made(dtype)
    quiet = vae.decode(latents).sample, vae.encode(picture).latent_dist.parameters
    with ExitStack() as settings:
        settings.enter_context(SETTINGS[name]())
        fresh = exact(vae.vae)  # which prepares its weights under the setting, too
        fresh.modes = STRIPS
        found = [(v.decode(latents).sample, v.encode(picture).latent_dist.parameters) for v in (vae, fresh)]
    for sample, parameters in found:
        assert torch.equal(sample, quiet[0])
        assert torch.equal(parameters, quiet[1])
