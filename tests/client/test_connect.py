"""``connect`` beyond the pictures: which model it takes, what it refuses, and what it leaves behind."""

from __future__ import annotations

import gc
import http.server
import json
import socket
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from conftest import small_kl, small_tiny
from pipelines import bitwise_engine, load_small_pipelines

import hybridge
from hybridge.client import Client, Retry
from hybridge.engine import Engine
from hybridge.errors import (
    BadAnswer,
    ClientError,
    Mismatch,
    RequestError,
    ServerRefused,
    ServerUnreachable,
)
from hybridge.models import CATALOGUE, model_of_pipeline
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

small = load_small_pipelines()

Handler = http.server.BaseHTTPRequestHandler
Serve = Callable[[Callable[[Handler, bytes], None]], str]

SDXL = {"scaling_factor": 0.13025, "force_upcast": False}


@pytest.fixture
def pipe() -> Any:
    return small.stable_diffusion(small_kl(4))


def state_of(pipe: Any) -> dict[str, Any]:
    return {**vars(pipe), "_internal_dict": str(pipe.config)}


# ------------------------------------------------------------------------------------------ which model


def test_pipelines_inside_a_pipeline_get_the_remote_vae_too(pipe: Any, server: str) -> None:
    """As VisualCloze has two; one with a VAE of its own keeps it."""
    vae, other = pipe.vae, small_kl(4, seed=1)
    pipe.inner, pipe.apart = small.stable_diffusion(vae), small.stable_diffusion(other)
    with hybridge.connect(pipe, server):
        assert pipe.inner.vae is pipe.vae is not vae
        assert pipe.apart.vae is other
    assert pipe.inner.vae is pipe.vae is vae


@pytest.mark.parametrize(
    ("build", "vae", "model"),
    [
        (small.stable_diffusion, None, "sd-v1"),
        (small.stable_diffusion, {}, "sd-v1"),
        (small.stable_diffusion_xl, None, "sdxl"),
        (small.stable_diffusion_xl, SDXL, "sdxl"),
        (small.stable_diffusion, SDXL, "sdxl"),  # what the config says counts for more than the class
        (small.flux, None, "flux"),
    ],
)
def test_the_model_that_fits(build: Any, vae: dict[str, Any] | None, model: str, server: str) -> None:
    with hybridge.connect(build(None if vae is None else small_kl(4, **vae)), server) as done:
        (replaced,) = done.replaced
    assert (replaced.part, replaced.model) == ("vae", model)
    assert f"scaling factor {CATALOGUE[model].normalisation.scaling_factor:g}" in replaced.reason
    assert ("its VAE's config" if vae is not None else "Pipeline") in replaced.reason
    assert str(done).startswith(f"vae is {model} of {server}: ")


def test_of_several_that_fit_the_one_with_the_same_config(tmp_path: Any) -> None:
    """sdxl and sdxl-original differ in weights; ``force_upcast`` is the trace of it in the config."""
    engines = {}
    for name, upcast in (("sdxl", False), ("sdxl-original", True)):
        small_kl(4, scaling_factor=0.13025, force_upcast=upcast).save_pretrained(tmp_path / name)
        spec = replace(CATALOGUE[name], source=str(tmp_path / name))
        engines[name] = bitwise_engine(spec)
    with running(create_app(LocalBackend(engines))) as address:
        for name, upcast in (("sdxl", False), ("sdxl-original", True)):
            own = small.stable_diffusion_xl(small_kl(4, scaling_factor=0.13025, force_upcast=upcast))
            with hybridge.connect(own, address) as done:
                assert done.replaced[0].model == name
                assert "its config is the pipeline's" in done.replaced[0].reason
        with hybridge.connect(small.stable_diffusion_xl(None), address) as done:
            assert done.replaced[0].model == "sdxl"


def test_a_class_of_ones_own(server: str) -> None:
    class MyPipeline(diffusers.StableDiffusionPipeline):  # type: ignore[misc]
        """Known by its base."""

    with hybridge.connect(small.stable_diffusion(None, MyPipeline), server) as done:
        assert done.replaced[0].model == "sd-v1"


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("StableDiffusionControlNetInpaintPipeline", "sd-v1"),
        ("StableDiffusionXLControlNetPipeline", "sdxl"),
        ("StableDiffusion3InpaintPipeline", "sd3"),
        ("FluxKontextPipeline", "flux"),
        ("Flux2Pipeline", None),
        ("StableDiffusionUpscalePipeline", None),
        ("WanPipeline", None),
    ],
)
def test_families(name: str, model: str | None) -> None:
    assert model_of_pipeline([name]) == model
    assert model_of_pipeline(["Mine", name, "DiffusionPipeline"]) == model


def test_every_family_is_in_the_catalogue() -> None:
    from hybridge.models import families

    assert {name for name in families._FAMILIES.values() if name} <= set(CATALOGUE)


def test_a_model_of_another_factor_where_it_was_chosen(tmp_path: Any) -> None:
    """Without a VAE a pipeline assumes eight pixels per latent, and whatever it made of that is corrected."""
    small.vae(4, seed=6, levels=3).save_pretrained(tmp_path)
    spec = replace(CATALOGUE["sd-v1"], name="fourfold", source=str(tmp_path), spatial_factor=4)
    engine = bitwise_engine(spec)
    inpaint = diffusers.StableDiffusionInpaintPipeline

    def run(pipe: Any) -> torch.Tensor:
        pictures = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        return pipe(
            "a cat",
            image=pictures[0],
            mask_image=pictures[1][:, :1],
            height=36,
            width=32,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images

    expected = run(small.stable_diffusion(diffusers.AutoencoderKL.from_pretrained(str(tmp_path)), inpaint))
    pipe = small.stable_diffusion(None, inpaint)
    before = state_of(pipe)
    with running(create_app(LocalBackend({"fourfold": engine}))) as address:
        with pytest.raises(Mismatch, match="4 pixels per latent where 8 are needed"):
            hybridge.connect(pipe, address)
        with hybridge.connect(pipe, address, model="fourfold"):
            assert pipe.vae_scale_factor == 4
            assert pipe.image_processor.config.vae_scale_factor == pipe.mask_processor.config.vae_scale_factor == 4
            assert torch.equal(run(pipe), expected)
    assert before.items() <= state_of(pipe).items()  # what a call leaves is more


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("build", "model", "message", "remedy"),
    [
        (small.stable_diffusion_xl, "sdxll", "does not serve 'sdxll'", 'Try: model="sdxl"$'),
        (small.flux, "sd-v1", "4 latent channels where 16 are needed", 'Try: model="flux"$'),
        (
            small.stable_diffusion_3,
            None,
            r"no model for this StableDiffusion3Pipeline: saw sd-v1 \(4",
            "serve sd3`",
        ),
    ],
)
def test_what_does_not_fit(build: Any, model: str | None, message: str, remedy: str, server: str) -> None:
    pipe = build(None)
    before = state_of(pipe)
    with pytest.raises(Mismatch, match=message) as caught:
        hybridge.connect(pipe, server, model=model)
    assert server in str(caught.value)
    assert caught.match(remedy)
    assert state_of(pipe) == before


def test_an_sdxl_pipeline_and_a_server_of_sd_v1_alone(engines: dict[str, Engine]) -> None:
    with (
        running(create_app(LocalBackend({"sd-v1": engines["sd-v1"]}))) as address,
        pytest.raises(Mismatch, match="Try: `hybridge serve sdxl` on that machine"),
    ):
        hybridge.connect(small.stable_diffusion_xl(small_kl(4, **SDXL)), address)


def test_a_full_autoencoder_is_not_replaced_by_a_tiny_one_unasked(engines: dict[str, Engine], pipe: Any) -> None:
    with running(create_app(LocalBackend({"taesd": engines["taesd"]}))) as address:
        with pytest.raises(Mismatch, match=r'taesd .another class.*Try: model="taesd"'):
            hybridge.connect(pipe, address)
        with hybridge.connect(pipe, address, model="taesd"):
            assert pipe.vae.config.scaling_factor == 1.0


def test_what_is_no_pipeline_or_has_another_vae(server: str) -> None:
    with pytest.raises(Mismatch, match="no VAE to replace: saw object"):
        hybridge.connect(object(), server)
    other = small.stable_diffusion(None)
    other.vae = diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4)
    with pytest.raises(Mismatch, match=r"saw VQModel, expected one of .*AutoencoderKL"):
        hybridge.connect(other, server)


def test_a_denoiser_by_another_name(server: str) -> None:
    pipe = small.stable_diffusion(None)
    unet = pipe.unet

    class Versatile(diffusers.DiffusionPipeline):  # type: ignore[misc]
        def __init__(self, vae: Any, image_unet: Any = None) -> None:
            super().__init__()
            self.register_modules(vae=vae, image_unet=image_unet)

    named = Versatile(None, unet)
    with hybridge.connect(named, server, model="sdxl"):
        assert named.vae.config.scaling_factor == 0.13025
    with pytest.raises(Mismatch, match=r"no denoiser of a known name\. Try: loading it with its VAE"):
        hybridge.connect(Versatile(None), server, model="sdxl")


def test_a_class_that_nobody_knows(server: str) -> None:
    class Mystery(diffusers.DiffusionPipeline):  # type: ignore[misc]
        def __init__(self, vae: Any, unet: Any) -> None:
            super().__init__()
            self.register_modules(vae=vae, unet=unet)

    pipe = Mystery(None, small.stable_diffusion(None).unet)
    with pytest.raises(Mismatch, match=r"nothing tells which VAE Mystery needs.*model=.*loading it with its VAE"):
        hybridge.connect(pipe, server)
    with pytest.raises(Mismatch, match="16 latent channels where 4 are needed"):
        hybridge.connect(pipe, server, model="flux")
    with hybridge.connect(pipe, server, model="sdxl"):
        assert pipe.vae.config.scaling_factor == 0.13025
    pipe.vae = small_tiny(4)
    with pytest.raises(Mismatch, match=r"whose latents the tiny autoencoder of this Mystery reads.*model=.taesd"):
        hybridge.connect(pipe, server)
    with hybridge.connect(pipe, server, model="taesd"):
        assert pipe.vae.model == "taesd"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("vea", "saw 'vea'.*Try: vae"),
        (["vae", "unet"], "saw 'unet'"),
        ([], "nothing to replace"),
        (None, "saw .None"),
        (1, "saw .1"),
    ],
)
def test_parts_that_do_not_exist(parts: Any, message: str, pipe: Any) -> None:
    with pytest.raises(RequestError, match=message):
        hybridge.connect(pipe, "http://127.0.0.1:9", parts=parts)


# ------------------------------------------------------------------------------------------- bad servers


def answer(status: int, media_type: str, body: bytes) -> Callable[[Handler, bytes], None]:
    def talk(handler: Handler, _: bytes) -> None:
        handler.send_response(status)
        handler.send_header("content-type", media_type)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return talk


def models(*documents: Any) -> bytes:
    return json.dumps({"models": documents}).encode()


PAGE = b"<!doctype html><title>Welcome</title>"


@pytest.mark.parametrize(
    ("talk", "kind", "message"),
    [
        (answer(200, "text/html", PAGE), BadAnswer, "is not a hybridge server.*a web page or a proxy"),
        (answer(404, "text/html", PAGE), BadAnswer, "HTTP 404 without an explanation.*a web page or a proxy"),
        (answer(502, "text/html", PAGE), BadAnswer, "HTTP 502 without an explanation.*a web page or a proxy"),
        (answer(200, "application/json", b"[]"), BadAnswer, "did not list its models"),
        (
            answer(401, "text/html", PAGE),
            ServerRefused,
            "does not let this caller in: saw HTTP 401. Try: .*api_key",
        ),
        (
            answer(403, "application/json", b'{"error": "wrong key"}'),
            ServerRefused,
            "saw HTTP 403: wrong key. Try: .*api_key",
        ),
        # What a release before this one says of a model, and what none would.
        (
            answer(200, "application/json", models({"name": "sd-v1", "class": "AutoencoderKL"})),
            BadAnswer,
            "saw 'sd-v1' with KeyError: 'config'.*the same release of hybridge",
        ),
        (answer(200, "application/json", models("sd-v1")), BadAnswer, "the same release of hybridge"),
        (answer(200, "application/json", models({"class": "VQModel"})), Mismatch, "no VAE at all"),
    ],
)
def test_servers_of_another_kind(talk: Any, kind: type[ClientError], message: str, serve: Serve, pipe: Any) -> None:
    url, before = serve(talk), state_of(pipe)
    with pytest.raises(kind, match=message) as caught:
        hybridge.connect(pipe, url)
    assert url in str(caught.value)
    assert state_of(pipe) == before


def test_a_server_that_is_down(pipe: Any) -> None:
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{placeholder.getsockname()[1]}"
        with Client(url, retries=Retry(attempts=1)) as client, pytest.raises(ServerUnreachable, match=url):
            hybridge.connect(pipe, client)


DESCRIBED = {
    "name": "sd-v1",
    "class": "AutoencoderKL",
    "latent_channels": 4,
    "spatial_factor": 8,
    "scaling_factor": 0.18215,
    "shift_factor": 0.0,
    "latents_mean": None,
    "latents_std": None,
    "dtype": "float32",
    "config": {"scaling_factor": 0.18215},
}


# ---------------------------------------------------------------------------------------- what is left


@pytest.mark.parametrize("with_vae", [True, False])
def test_undo_leaves_the_pipeline_as_it_was(with_vae: bool, server: str) -> None:
    pipe = small.stable_diffusion(small_kl(4) if with_vae else None)
    vae, before = pipe.vae, state_of(pipe)
    done = hybridge.connect(pipe, server)
    assert isinstance(pipe.vae, hybridge.RemoteVAE)
    done.undo()
    assert pipe.vae is vae
    assert state_of(pipe) == before
    done.undo()
    assert pipe.vae is vae


def test_connections_are_undone_in_turn(server: str, pipe: Any) -> None:
    vae = pipe.vae
    first = hybridge.connect(pipe, server)
    second = hybridge.connect(pipe, server, model="taesd")
    with pytest.raises(ClientError, match=r"replaced again since.*undoing the later connection first"):
        first.undo()
    second.undo()
    assert pipe.vae.model == "sd-v1"
    first.undo()
    assert pipe.vae is vae


def test_a_client_of_the_callers_stays_open(server: str, pipe: Any) -> None:
    with Client(server) as client:
        hybridge.connect(pipe, client).undo()
        assert client.health() == {"status": "ok"}


def test_a_replaced_vae_is_kept_by_the_connection_alone(server: str, pipe: Any) -> None:
    replaced = weakref.ref(pipe.vae)
    with Client(server) as client:
        connection = hybridge.connect(pipe, client)
        gc.collect()
        assert replaced() is not None
        del connection
        gc.collect()
        assert replaced() is None


def test_a_client_has_its_own_key(server: str, pipe: Any) -> None:
    with Client(server) as client, pytest.raises(RequestError, match="a client has its own key and timeout"):
        hybridge.connect(pipe, client, api_key="s3cret")


def test_the_key_is_sent_and_not_shown(serve: Serve, pipe: Any) -> None:
    keys = []

    def talk(handler: Handler, body: bytes) -> None:
        keys.append(handler.headers["authorization"])
        answer(200, "application/json", models(DESCRIBED))(handler, body)

    with hybridge.connect(pipe, serve(talk), api_key="s3cret") as done:
        assert "s3cret" not in repr(done) + str(done) + repr(pipe.vae)
    assert keys == ["Bearer s3cret"]
