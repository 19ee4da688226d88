"""A preview, then the picture: over one response of our own server, and where that response is broken."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from hybridge.client import AsyncClient, Client, Picture, Preview, Retry
from hybridge.engine import Engine, EngineOptions
from hybridge.errors import BadAnswer, ClientError, EngineFailure, NoPreview, RequestError, ServerRefused
from hybridge.models import CATALOGUE, LATENT_RGB, ModelSpec, look_up
from hybridge.protocol import (
    PARTED,
    HttpResponse,
    PartsReader,
    TensorAnswer,
    WireTensor,
    end_parts,
    write_answer,
    write_failure,
    write_part,
)
from hybridge.protocol.media import write_picture
from hybridge.server.app import create_app
from hybridge.server.http.preview import choose_source
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.request_record import RequestRecord
from hybridge.server.process.server import running
from hybridge.server.scheduling.vae_job import VaeJob, VaeResult

LATENTS = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(2))
BODY = LATENTS.numpy().tobytes()

Serve = Callable[[Callable[[http.server.BaseHTTPRequestHandler, bytes], None]], str]


def test_a_tiny_autoencoder_makes_the_preview_where_there_is_one(server: str) -> None:
    with Client(server) as client:
        preview, picture = client.decode_with_preview(LATENTS, model="sd-v1", scaling_factor=0.18215)
        tiny = client.decode(LATENTS, model="taesd", scaling_factor=0.18215)
        full = client.decode(LATENTS, model="sd-v1", scaling_factor=0.18215)
    assert isinstance(preview, Preview)
    assert isinstance(picture, Picture)
    assert preview.made_by == "taesd"
    assert preview.picture.tobytes() == tiny.tobytes()
    assert picture.value.tobytes() == full.tobytes()


def test_else_a_matrix_does_at_the_size_of_the_latents(server: str) -> None:
    with Client(server) as client:
        preview, picture = client.decode_with_preview(LATENTS, model="sdxl", do_scaling=True, output="signed")
        full = client.decode(LATENTS, model="sdxl", do_scaling=True, output="signed")
    rgb = LATENT_RGB["sdxl"]
    colours = LATENTS[0].permute(1, 2, 0) @ torch.tensor(rgb.factors) + torch.tensor(rgb.bias)
    expected = ((colours / 2 + 0.5).clamp(0, 1) * 255).round()
    assert (preview.made_by, preview.picture.size) == ("latent-rgb", (8, 6))
    assert np.abs(np.asarray(preview.picture) - expected.numpy()).max() <= 1
    assert torch.equal(picture.value, full)


def test_the_same_latents_in_every_space_have_one_preview(server: str) -> None:
    own = look_up("sdxl").normalisation.scaling_factor
    asked = (
        {"latents": LATENTS, "do_scaling": True},
        {"latents": LATENTS, "scaling_factor": own},
        {"latents": LATENTS / own},
    )
    with Client(server) as client:
        previews = [next(client.decode_with_preview(model="sdxl", **arguments)).picture for arguments in asked]
    arrays = [np.asarray(preview).astype(int) for preview in previews]
    assert max(np.abs(array - arrays[0]).max() for array in arrays) <= 1


def test_packed_latents_have_the_preview_of_the_unpacked(server: str) -> None:
    from diffusers import FluxPipeline

    latents = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(9))
    packed = FluxPipeline._pack_latents(latents, 1, 16, 4, 6)
    with Client(server) as client:
        plain = next(client.decode_with_preview(latents, model="flux"))
        unpacked = next(client.decode_with_preview(packed, model="flux", height=32, width=48))
    assert plain.picture.tobytes() == unpacked.picture.tobytes()


def test_both_clients_get_the_same(server: str) -> None:
    async def ask() -> list[Any]:
        async with AsyncClient(server) as client:
            return [part async for part in client.decode_with_preview(LATENTS, model="sd-v1", output="pixels")]

    with Client(server) as client:
        preview, picture = client.decode_with_preview(LATENTS, model="sd-v1", output="pixels")
    other_preview, other_picture = asyncio.run(ask())
    assert preview.picture.tobytes() == other_preview.picture.tobytes()
    assert torch.equal(picture.value, other_picture.value)


class Held:
    """A backend in front of another that keeps full decodes back until they are let go."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self.gate = threading.Event()
        self.cancelled = threading.Event()
        self.fails = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def run(self, job: VaeJob, on_progress: Any = None) -> VaeResult:
        if job.spec.kind == "kl":
            try:
                await asyncio.get_running_loop().run_in_executor(None, self.gate.wait, 10)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            if self.fails:
                raise EngineFailure("the forward broke")
        return await self._backend.run(job, on_progress)


@pytest.fixture
def held(engines: dict[str, Engine]) -> Iterator[tuple[Held, str]]:
    backend = Held(LocalBackend({name: engines[name] for name in ("sd-v1", "taesd")}))
    with running(create_app(backend)) as address:
        yield backend, address
        backend.gate.set()


def test_the_preview_is_there_before_the_full_decode_begins(held: tuple[Held, str]) -> None:
    backend, address = held
    with Client(address) as client:
        parts = client.decode_with_preview(LATENTS, model="sd-v1")
        assert isinstance(next(parts), Preview)
        assert not backend.gate.is_set()
        backend.gate.set()
        assert isinstance(next(parts), Picture)
        assert list(parts) == []


def test_who_leaves_after_the_preview_takes_the_decode_along(held: tuple[Held, str]) -> None:
    backend, address = held
    with Client(address) as client:
        parts = client.decode_with_preview(LATENTS, model="sd-v1")
        next(parts)
        parts.close()
        assert backend.cancelled.wait(10)


def test_a_failure_after_the_preview_has_its_status_and_reason(held: tuple[Held, str]) -> None:
    backend, address = held
    backend.fails = True
    with Client(address) as client:
        parts = client.decode_with_preview(LATENTS, model="sd-v1")
        next(parts)
        backend.gate.set()
        with pytest.raises(ServerRefused, match="the forward broke") as caught:
            next(parts)
    assert (caught.value.status, caught.value.code) == (500, "EngineFailure")


def test_the_wire_as_curl_sees_it(server: str) -> None:
    query = "shape=1,4,6,8&dtype=float32&preview=True&image_format=png"
    answer = httpx.post(f"{server}/v1/sd-v1/decode?{query}", content=BODY)
    assert answer.headers["content-type"] == PARTED
    assert answer.headers["hybridge-model"] == "sd-v1"
    plain = httpx.post(f"{server}/v1/sd-v1/decode?{query}".replace("&preview=True", ""), content=BODY)
    assert answer.headers["x-accel-buffering"] == "no"
    exposed = "access-control-expose-headers"
    assert answer.headers[exposed] == plain.headers[exposed]
    assert {"hybridge-model", "server-timing"} <= set(answer.headers[exposed].split(", "))
    reader = PartsReader()
    preview, picture = reader.feed(answer.content)
    reader.finish()
    assert [part.headers["hybridge-part"] for part in (preview, picture)] == ["preview", "picture"]
    stages = [
        {part.partition(";")[0] for part in one.headers["server-timing"].split(", ")} for one in (plain, picture)
    ]
    assert stages[0] == stages[1] == {"read", "queue", "load", "device", "encode"}
    assert picture.headers["hybridge-plan"] == plain.headers["hybridge-plan"]


def test_the_record_of_a_request_with_a_preview_is_that_of_one_without(engines: dict[str, Engine]) -> None:
    records: list[RequestRecord] = []
    backend = Held(LocalBackend({name: engines[name] for name in ("sd-v1", "taesd")}))
    with running(create_app(backend, observers=[records.append])) as address:  # type: ignore[arg-type]
        backend.gate.set()
        for preview in ("True", "False"):
            httpx.post(f"{address}/v1/sd-v1/decode?shape=1,4,6,8&dtype=float32&preview={preview}", content=BODY)
        backend.gate.clear()
        backend.fails = True
        with Client(address) as client:
            parts = client.decode_with_preview(LATENTS, model="sd-v1")
            next(parts)
            backend.gate.set()
            with pytest.raises(ServerRefused):
                next(parts)
        backend.gate.clear()
        with Client(address) as client:
            parts = client.decode_with_preview(LATENTS, model="sd-v1")
            next(parts)
            parts.close()
            assert backend.cancelled.wait(10)
        backend.gate.set()
    with_preview, without, failed, left = records
    assert with_preview.milliseconds.keys() == without.milliseconds.keys()
    assert {"read", "device", "encode", "total"} <= with_preview.milliseconds.keys()
    assert (with_preview.shared_by, with_preview.pictures, with_preview.status) == (1, 1, 200)
    assert (failed.status, left.status) == (500, 499)


# --------------------------------------------------------------------------------------------- refusals


def test_no_preview_is_a_typed_refusal(server: str) -> None:
    with Client(server) as client, pytest.raises(ServerRefused, match="one picture"):
        next(client.decode_with_preview(torch.cat([LATENTS, LATENTS]), model="sd-v1", output="pixels"))
    unknown = replace(CATALOGUE["sd-v1"], name="mine")
    assert choose_source(CATALOGUE["taesd"], {}) is LATENT_RGB["sd-v1"]
    with pytest.raises(RequestError, match="no preview for mine"):
        choose_source(unknown, {"mine": unknown, "taesd": CATALOGUE["taesd"]})
    another = replace(CATALOGUE["flux"], name="sd-v1")  # the name of a model with fewer channels
    with pytest.raises(NoPreview):
        choose_source(another, {"sd-v1": another, "taesd": CATALOGUE["taesd"]})


@pytest.mark.parametrize("spec", CATALOGUE.values(), ids=CATALOGUE)
def test_every_model_of_the_catalogue_has_a_preview_or_says_why_not(spec: ModelSpec) -> None:
    rgb = LATENT_RGB.get(spec.parent or spec.name)
    if rgb is None:
        assert spec.class_name != "AutoencoderKL" or spec.normalisation.mean
        with pytest.raises(NoPreview, match=f"no preview for {spec.name}"):
            choose_source(spec, {})
        return
    assert len(rgb.factors) == spec.latent_channels
    assert rgb.origin


def test_mistakes_are_named_at_once() -> None:
    with Client("http://h") as client:
        with pytest.raises(TypeError, match="modle"):
            client.decode_with_preview(LATENTS, modle="sd-v1")
        with pytest.raises(RequestError, match="unknown output"):
            client.decode_with_preview(LATENTS, output="pil")


# ------------------------------------------------------------------------------------- broken responses

SMALL = write_picture(WireTensor("uint8", (1, 2, 2, 3), bytes(12)), "png")
FIRST = write_part(
    "preview", HttpResponse(200, {"content-type": SMALL.media_type, "hybridge-preview": "tiny"}, SMALL.data)
)
PIXELS = write_answer(TensorAnswer(WireTensor("uint8", (1, 6, 8, 3), bytes(range(144)))))


def answering(*responses: HttpResponse) -> httpx.MockTransport:
    left = list(responses)

    def handle(request: httpx.Request) -> httpx.Response:
        response = left.pop(0)
        return httpx.Response(response.status, headers=response.headers, content=response.body)

    return httpx.MockTransport(handle)


def parted(body: bytes) -> HttpResponse:
    return HttpResponse(200, {"content-type": PARTED}, body)


def ask(*responses: HttpResponse) -> list[Any]:
    with Client("http://h", transport=answering(*responses), retries=Retry(attempts=1)) as client:
        return list(client.decode_with_preview(LATENTS, model="sd-v1", output="pixels"))


def test_a_picture_that_is_lost_after_the_preview_is_asked_for_again_alone() -> None:
    preview, picture = ask(parted(FIRST), PIXELS)
    assert isinstance(preview, Preview)
    assert picture.value.flatten().tolist() == list(range(144))


def test_a_connection_that_breaks_after_the_preview(serve: Serve) -> None:
    turns: list[bytes] = []

    def talk(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        turns.append(body)
        response = parted(FIRST) if len(turns) == 1 else PIXELS
        handler.send_response(200)
        for name, value in response.headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(response.body) + (100 if len(turns) == 1 else 0)))
        handler.end_headers()
        handler.wfile.write(response.body)
        handler.close_connection = True

    with Client(serve(talk)) as client:
        _, picture = client.decode_with_preview(LATENTS, model="sd-v1", output="pixels")
    assert isinstance(picture, Picture)
    assert len(turns) == 2


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (PIXELS, "in one piece"),
        (parted(b"<html>"), "cannot be read"),
        (HttpResponse(200, {"content-type": "text/html"}, b"<html>"), "in one piece"),
        (HttpResponse(502, {"content-type": "text/html"}, b"<html>"), "without an explanation"),
    ],
    ids=["no parts", "no such parts", "web page", "proxy"],
)
def test_what_is_no_answer_in_parts(response: HttpResponse, words: str) -> None:
    with pytest.raises(BadAnswer, match=words) as caught:
        ask(response)
    assert "http://h" in str(caught.value)


def test_an_older_server_says_that_it_does_not_know_previews() -> None:
    from hybridge.errors import UnknownParameter

    old = write_failure(UnknownParameter("unknown parameter", saw="'preview'"))
    with pytest.raises(ClientError, match="the server's version"):
        ask(old)


def test_a_preview_picture_is_a_pil_image() -> None:
    preview, _ = ask(parted(FIRST + write_part("picture", PIXELS) + end_parts()))
    assert isinstance(preview.picture, Image.Image)
    assert preview.made_by == "tiny"


def test_the_starters_matrix_sees_the_photograph_that_it_was_not_fitted_to(photograph: Path) -> None:
    engine = Engine.load(look_up("starter"), EngineOptions(device="cpu"))
    with Image.open(photograph) as file:
        part = file.convert("RGB").crop((128, 0, 384, 256))
    with running(create_app(LocalBackend({"starter": engine}))) as address, Client(address) as client:
        latents = client.encode(part, model="starter", do_scaling=True)
        preview = next(client.decode_with_preview(latents, model="starter", do_scaling=True))
    error = np.mean((np.asarray(preview.picture).astype(float) - np.asarray(part.reduce(8)).astype(float)) ** 2)
    assert 10 * np.log10(255**2 / error) > 25
