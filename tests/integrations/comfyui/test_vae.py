"""The remote VAE and the nodes around it against real servers: what they give is what diffusers' VAE gives here."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from hybridge.engine import Engine
from hybridge.models import ModelSpec
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

Node = Callable[..., tuple[Any, ...]]
MakeProfile = Callable[..., str]

#: An 8-bit level, and what is left after rounding to one.
LEVEL, HALF_LEVEL = 1 / 255, 0.5 / 255 + 1e-4


@pytest.fixture
def desktop(server: str, profile: MakeProfile) -> str:
    return profile(server)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    """8-bit pixels as ComfyUI loads them."""
    levels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))
    return levels.to(torch.float32) / 255.0


def local(spec: ModelSpec) -> Any:
    return AutoencoderKL.from_pretrained(spec.source).eval()


@torch.no_grad()
def decoded_here(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) in [0, 1], as ComfyUI's own VAE does it."""
    return ((vae.decode(latents).sample + 1) / 2).clamp(0, 1).movedim(1, -1)


@torch.no_grad()
def encoded_here(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    return vae.encode(pixels.movedim(-1, 1) * 2 - 1).latent_dist.mode()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_batch_is_decoded(node: Node, desktop: str, specs: dict[str, ModelSpec], mode: Any) -> None:
    latents = numbers(3, 4, 8, 9)
    expected = decoded_here(local(specs["sd-v1"]), latents)
    with mode():
        (vae,) = node("HybridgeVAE", profile=desktop, model="sd-v1", precision="float")
        (bytes_vae,) = node("HybridgeVAE", profile=desktop, model="sd-v1")
        exact, rounded = vae.decode(latents), bytes_vae.decode_tiled(latents, tile_x=64, tile_y=64, overlap=16)
        (plain,) = node("HybridgeDecode", samples={"samples": latents}, profile=desktop, model="sd-v1")
    assert exact.shape == (3, 64, 72, 3)
    assert exact.dtype == torch.float32
    torch.testing.assert_close(exact, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rounded, expected, atol=HALF_LEVEL, rtol=0)
    assert torch.equal(plain, rounded)


def test_pictures_are_encoded_and_cropped_at_their_centre(
    node: Node, desktop: str, specs: dict[str, ModelSpec]
) -> None:
    pixels = picture(2, 67, 83, 4)
    expected = encoded_here(local(specs["flux"]), pixels[:, 1:65, 1:81, :3])
    with torch.inference_mode():
        (vae,) = node("HybridgeVAE", profile=desktop, model="flux")
        found = vae.encode(pixels)
        (plain,) = node("HybridgeEncode", pixels=pixels, profile=desktop, model="flux")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert torch.equal(plain["samples"], found)


def test_pixels_between_the_levels_are_not_rounded(node: Node, desktop: str, specs: dict[str, ModelSpec]) -> None:
    pixels = picture(1, 32, 32, 3) * 0.9 + 0.03
    (vae,) = node("HybridgeVAE", profile=desktop, model="sd-v1")
    expected = encoded_here(local(specs["sd-v1"]), pixels)
    torch.testing.assert_close(vae.encode(pixels), expected, atol=1e-4, rtol=0)


def test_bytes_are_sent_for_8_bit_pixels_alone(pack: ModuleType) -> None:
    levels_of = sys.modules[f"{pack.__name__}.vae"].levels_of
    exact = picture(1, 16, 16, 3)
    assert torch.equal(levels_of(exact).float() / 255, exact)
    for other in (exact + 1e-4, exact * 2, -exact):
        assert levels_of(other) is None


def test_a_tiny_autoencoder_takes_the_latents_of_its_parent(
    node: Node, desktop: str, specs: dict[str, ModelSpec]
) -> None:
    tiny = AutoencoderTiny.from_pretrained(specs["taesd"].source).eval()
    latents = numbers(1, 4, 8, 8)
    (vae,) = node("HybridgeVAE", profile=desktop, model="taesd", precision="float")
    expected = decoded_here(tiny, latents * 0.18215)
    torch.testing.assert_close(vae.decode(latents), expected, atol=1e-5, rtol=0)


def test_it_says_what_nodes_ask(node: Node, desktop: str) -> None:
    (vae,) = node("HybridgeVAE", profile=desktop, model="sd-v1")
    assert vae.downscale_ratio == vae.upscale_ratio == 8
    assert vae.spacial_compression_decode() == vae.spacial_compression_encode() == 8
    assert vae.temporal_compression_decode() is None
    assert (vae.latent_channels, vae.latent_dim, vae.output_channels) == (4, 2, 3)
    assert vae.vae_output_dtype() is vae.decode(numbers(1, 4, 4, 4)).dtype
    vae.throw_exception_if_invalid()
    with pytest.raises(RuntimeError, match="on the server"):
        vae.get_sd()
    with pytest.raises(RuntimeError, match="local VAE"):
        vae.first_stage_model  # noqa: B018


@pytest.mark.parametrize(
    ("latents", "what"),
    [
        ((1, 16, 8, 8), "latents with 4 channels"),
        ((1, 4, 3, 8, 8), "latents with 4 channels"),
        ((4, 8, 8), "latents with 4 channels"),
    ],
)
def test_latents_of_another_model_are_refused_in_a_sentence(
    node: Node, desktop: str, latents: tuple[int, ...], what: str
) -> None:
    (vae,) = node("HybridgeVAE", profile=desktop, model="sd-v1")
    with pytest.raises(RuntimeError, match=what) as error:
        vae.decode(torch.zeros(latents))
    assert str(list(latents)) in str(error.value)


def test_a_single_frame_is_a_picture(node: Node, desktop: str) -> None:
    (vae,) = node("HybridgeVAE", profile=desktop, model="sd-v1")
    latents = numbers(1, 4, 8, 8)
    assert torch.equal(vae.decode(latents[:, :, None]), vae.decode(latents))


def test_the_server_is_tried_by_decoding(node: Node, desktop: str) -> None:
    name, report = node("HybridgeServer", profile=desktop)
    assert name == "desktop"
    assert "decoded a picture of 64×64 pixels" in report
    assert "- sdxl: decode, encode (loaded)" in report


def test_the_progress_bar_moves(node: Node, desktop: str, pack: ModuleType) -> None:
    bar = sys.modules["comfy.utils"]
    (vae,) = node("HybridgeVAE", profile=desktop, model="sd-v1")
    bar.seen.clear()
    vae.decode(numbers(2, 4, 8, 8))
    moves = [value for value, total, _ in bar.seen if total == 200]
    assert moves == sorted(moves)
    assert moves[-1] == 200
    bar.seen.clear()
    vae.encode(picture(1, 16, 16, 3))  # which samplers call, whose bar it is
    assert bar.seen == []


class HeldEngine:
    """An engine whose decodes wait until they are stopped."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.begun, self.stopped = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def decode(self, *given: Any, should_stop: Callable[[], bool], **named: Any) -> Any:
        self.begun.set()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if should_stop():
                self.stopped.set()
                break
            time.sleep(0.002)
        return self._engine.decode(*given, should_stop=should_stop, **named)


def test_an_interruption_reaches_the_server(
    pack: ModuleType, node: Node, profile: MakeProfile, engines: dict[str, Engine]
) -> None:
    held, management = HeldEngine(engines["sd-v1"]), sys.modules["comfy.model_management"]
    with running(create_app(LocalBackend({"sd-v1": held}))) as address:  # type: ignore[dict-item]
        (vae,) = node("HybridgeVAE", profile=profile(address, "held"))
        times: list[float] = []

        def press() -> None:
            assert held.begun.wait(20)
            times.append(time.monotonic())
            management.interrupt_current_processing()
            assert held.stopped.wait(20)
            times.append(time.monotonic())

        thread = threading.Thread(target=press)
        thread.start()
        with pytest.raises(management.InterruptProcessingException):
            vae.decode(numbers(3, 4, 8, 8))
        raised = time.monotonic()
        thread.join()
    # A fifth of a second, where other tests do not have the processors.
    assert raised - times[0] < 1
    assert times[1] - times[0] < 1


def test_nodes_are_complete(pack: ModuleType) -> None:
    """Each schema is valid, and execute takes exactly its inputs."""
    extension = asyncio.run(pack.comfy_entrypoint())
    for kind in asyncio.run(extension.get_node_list()):
        schema = kind.GET_SCHEMA()
        code = kind.execute.__func__.__code__
        assert set(code.co_varnames[1 : code.co_argcount]) == {one.id for one in schema.inputs}, kind
        assert schema.description
        assert schema.node_id.startswith("Hybridge")


# --------------------------------------------------------------------------------------------- videos and others


@torch.inference_mode()
def test_videos(node: Node, profile: MakeProfile, other_server: str, other_models: dict[str, Any]) -> None:
    module = other_models["wan-2.1"][0]
    (vae,) = node("HybridgeVAE", profile=profile(other_server), model="wan-2.1", precision="float")
    latents = numbers(1, vae.latent_channels, 2, 4, 4)
    expected = ((module.decode(latents).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
    assert expected.shape == (1, 5, 32, 32, 3)
    torch.testing.assert_close(vae.decode(latents), expected, atol=1e-5, rtol=0)
    (plain,) = node("HybridgeDecode", samples={"samples": latents}, profile="desktop", model="wan-2.1")
    assert plain.shape == (5, 32, 32, 3)

    frames = picture(5, 32, 32, 3)
    one_video = module.encode(frames.movedim(-1, 0)[None] * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(vae.encode(frames), one_video, atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.encode(frames * 0.9 + 0.01), vae.encode((frames * 0.9 + 0.01)[None]))
    pictures = vae.encode(frames[:2], not_video=True)
    single = module.encode(frames[1:2].movedim(-1, 0)[None] * 2 - 1).latent_dist.mode()
    assert pictures.shape[0] == 2
    torch.testing.assert_close(pictures[1:], single, atol=1e-4, rtol=0)

    assert vae.temporal_compression_decode() == 4
    assert vae.downscale_index_formula == (4, 8, 8)
    to_latent, height, _ = vae.downscale_ratio
    assert [to_latent(frames) for frames in (1, 5, 81)] == [1, 2, 21]
    assert (height, vae.upscale_ratio[0](21)) == (8, 81)


@torch.inference_mode()
def test_pictures_with_a_frame_axis(
    node: Node, profile: MakeProfile, other_server: str, other_models: dict[str, Any]
) -> None:
    module = other_models["qwen-image"][0]
    (vae,) = node("HybridgeVAE", profile=profile(other_server), model="qwen-image", precision="float")
    latents = numbers(2, vae.latent_channels, 1, 4, 4)
    expected = ((module.decode(latents).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(vae.decode(latents), expected, atol=1e-5, rtol=0)
    pixels = picture(2, 32, 32, 3)
    encoded = module.encode(pixels.movedim(-1, 1)[:, :, None] * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(vae.encode(pixels), encoded, atol=1e-4, rtol=0)
    with pytest.raises(RuntimeError, match="pictures"):
        vae.decode(numbers(1, vae.latent_channels, 2, 4, 4))
