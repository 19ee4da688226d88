"""What other code sets in torch, for the process or for a thread, changes no picture and no weight."""

from __future__ import annotations

import threading
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_that_another_thread_sets(dtype: torch.dtype) -> None:
    """Their number changes all the time; a run may add up in another order, and does nothing worse."""
    vae, latents, picture = made(dtype)
    expected = vae.decode(latents).sample, vae.encode(picture).latent_dist.parameters
    before, has_begun, is_over = torch.get_num_threads(), threading.Event(), threading.Event()

    def change() -> None:
        while not is_over.is_set():
            for count in (1, 2, 3, 4):
                torch.set_num_threads(count)
            has_begun.set()

    changing = threading.Thread(target=change)
    changing.start()
    try:
        assert has_begun.wait(60)
        found = [(vae.decode(latents).sample, vae.encode(picture).latent_dist.parameters) for _ in range(5)]
    finally:
        is_over.set()
        changing.join()
        torch.set_num_threads(before)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for results in found:
        for one, other in zip(results, expected, strict=True):
            assert torch.allclose(one.float(), other.float(), atol=tolerance, rtol=tolerance)
