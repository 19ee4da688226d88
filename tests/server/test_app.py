"""What the server says about itself, its waiting line, and how it goes down."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from itertools import islice

import httpx
import pytest
import torch
from openapi_spec_validator import validate

from hybridge.client import Client
from hybridge.engine import Engine
from hybridge.errors import AmbiguousModel, HybridgeError, RequestError, ServerRefused, ShuttingDown
from hybridge.models import CATALOGUE
from hybridge.protocol import DecodeRequest, EncodeRequest, PictureFile, Scaling, WireTensor
from hybridge.protocol.requests import DECODE_PARAMETERS, ENCODE_PARAMETERS
from hybridge.protocol.torch import from_torch, to_torch
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running
from hybridge.server.scheduling.limits import PictureSize
from hybridge.server.scheduling.vae_job import VaeJob, infer_model
from hybridge.server.settings import Settings, refuse_unknown_variables

LATENTS = WireTensor("float32", (1, 4, 8, 8), bytes(1024))
QUERY = {"shape": [1, 4, 8, 8], "dtype": "float32"}
BINARY = {"content-type": "tensor/binary"}


class TestInformation:
    def test_models_with_choices_and_reasons(self, server) -> None:
        models = {model["name"]: model for model in httpx.get(f"{server}/v1/models").json()["models"]}
        assert set(models) == {"sd-v1", "sdxl", "flux", "taesd"}
        flux = models["flux"]
        assert (flux["class"], flux["latent_channels"], flux["spatial_factor"]) == ("AutoencoderKL", 16, 8)
        assert (flux["scaling_factor"], flux["shift_factor"]) == (0.3611, 0.1159)
        assert (flux["dtype"], flux["device"]) == ("float32", "cpu")
        assert flux["dtype_reason"]
        assert flux["device_reason"]
        assert flux["weights_bytes"] > 0
        assert flux["threads"] == torch.get_num_threads()
        assert models["taesd"]["parent"] == "sd-v1"
        assert flux["config"]["block_out_channels"] == [8, 8, 16, 16]
        assert not any(name.startswith("_") for name in flux["config"])  # such as _name_or_path, a path here
        alone = httpx.get(f"{server}/v1/models/flux").json()
        assert alone.pop("revision") is None  # of a folder
        assert alone.pop("weights").startswith("sha256:")
        assert alone == flux

    def test_health_and_readiness(self, server) -> None:
        assert httpx.get(f"{server}/health").json() == {"status": "ok"}
        assert httpx.get(f"{server}/ready").json() == {"status": "ready"}

    def test_index(self, server) -> None:
        assert httpx.get(server).json()["models"] == ["sd-v1", "sdxl", "flux", "taesd"]

    def test_no_version_banner(self, server) -> None:
        assert "server" not in httpx.get(f"{server}/health").headers

    def test_the_openapi_document_is_valid_and_names_every_parameter(self, server) -> None:
        document = httpx.get(f"{server}/openapi.json").json()
        validate(document)
        paths = document["paths"]

        def described(path: str) -> set[str]:
            return {one["name"] for one in paths[path]["post"]["parameters"] if one["in"] == "query"}

        assert described("/v1/{model}/decode") == set(DECODE_PARAMETERS)
        assert described("/v1/{model}/encode") == set(ENCODE_PARAMETERS)
        assert described("/") == described("/predict") == set(DECODE_PARAMETERS) | set(ENCODE_PARAMETERS)
        bodies = paths["/v1/{model}/decode"]["post"]["requestBody"]["content"]
        assert bodies["tensor/binary"]["schema"]["format"] == "binary"


class TestAnswerHeaders:
    def test_model_timings_and_what_was_inferred(self, server) -> None:
        named = httpx.post(f"{server}/v1/sdxl/decode", params=QUERY, content=LATENTS.data, headers=BINARY)
        assert named.headers["hybridge-model"] == "sdxl"
        assert "hybridge-inferred" not in named.headers
        for stage in ("read", "queue", "load", "device", "encode"):
            assert f"{stage};dur=" in named.headers["server-timing"]
        inferred = httpx.post(
            f"{server}/", params={**QUERY, "scaling_factor": 0.13025}, content=LATENTS.data, headers=BINARY
        )
        assert inferred.headers["hybridge-inferred"] == (
            "model=sdxl; task=decode; reason=4 latent channels, scaling factor 0.13025"
        )

    def test_a_browser_may_read_them(self, engines) -> None:
        app = create_app(LocalBackend({"sd-v1": engines["sd-v1"]}), Settings(cors=("https://example.org",)))
        with running(app) as address:
            url, origin = f"{address}/v1/sd-v1/decode", {"origin": "https://example.org"}
            response = httpx.post(url, params=QUERY, content=LATENTS.data, headers={**BINARY, **origin})
            preflight = httpx.options(url, headers={**origin, "access-control-request-method": "POST"})
            stranger = httpx.post(
                url, params=QUERY, content=LATENTS.data, headers={**BINARY, "origin": "https://other.example"}
            )
        exposed = {name.strip() for name in response.headers["access-control-expose-headers"].split(",")}
        assert {"shape", "dtype", "hybridge-model", "hybridge-inferred"} <= exposed
        assert response.headers["access-control-allow-origin"] == "https://example.org"
        assert preflight.status_code == 200
        assert "access-control-allow-origin" not in stranger.headers

    def test_cors_is_off_unless_asked_for(self, server) -> None:
        response = httpx.get(f"{server}/v1/models", headers={"origin": "https://example.org"})
        assert "access-control-allow-origin" not in response.headers


SERVED = {name: CATALOGUE[name] for name in ("sd-v1", "sdxl", "sdxl-original", "flux", "taesd", "taef1")}


@pytest.mark.parametrize(
    ("query", "headers", "workers"),
    [
        ({}, {"accept": "tensor/binary"}, 0),
        ({}, {"accept": "tensor/base64"}, 1),
        ({}, {"accept": "image/png"}, 1),
        ({"return_type": "x" * 2000}, {"accept": "tensor/binary"}, 1),
        ({}, {"accept": "tensor/binary", "content-type": "application/octet-stream"}, 1),
    ],
    ids=["bytes", "base64", "picture", "long query", "whatever it is"],
)
def test_only_what_takes_no_time_keeps_off_the_threads(engines, query, headers, workers) -> None:
    def started() -> int:
        return sum(thread.name.startswith("hybridge-media") for thread in threading.enumerate())

    with running(create_app(LocalBackend({"sd-v1": engines["sd-v1"]}))) as address:
        before, url = started(), f"{address}/v1/sd-v1/decode"
        done = httpx.post(url, params={**QUERY, **query}, content=LATENTS.data, headers={**BINARY, **headers})
        assert (done.status_code, started() - before) == (200, workers)


class TestInferModel:
    @staticmethod
    def decode(shape: tuple[int, ...], **scaling: float) -> DecodeRequest:
        size = WireTensor.nbytes_of("float16", shape)
        given = Scaling("given", scaling["s"], scaling.get("t")) if scaling else Scaling()
        return DecodeRequest(WireTensor("float16", shape, bytes(size)), given, height=64, width=64)

    @pytest.mark.parametrize(
        ("request_", "expected"),
        [
            (decode((1, 4, 8, 8), s=0.18215), "sd-v1"),
            (decode((1, 16, 8, 8), s=0.3611, t=0.1159), "flux"),
            # Channels suffice, whatever the factor: taef1 shares them, but is not chosen over the full model.
            (decode((1, 16, 8, 8)), "flux"),
            (decode((1, 16, 64), s=0.3611, t=0.1159), "flux"),
            (EncodeRequest(PictureFile(b""), Scaling("given", 0.18215)), "sd-v1"),
        ],
    )
    def test_found(self, request_, expected) -> None:
        spec, reason = infer_model(request_, SERVED, None)
        assert spec.name == expected
        assert reason

    def test_a_tiny_default_is_taken(self) -> None:
        served = {name: CATALOGUE[name] for name in ("sd-v1", "taesd")}
        assert infer_model(self.decode((1, 4, 8, 8)), served, "taesd")[0].name == "taesd"
        assert infer_model(self.decode((1, 4, 8, 8)), served, None)[0].name == "sd-v1"

    @pytest.mark.parametrize(
        "request_",
        [
            decode((1, 4, 8, 8)),
            decode((1, 4, 8, 8), s=0.13025),  # sdxl and sdxl-original
            EncodeRequest(PictureFile(b"")),
        ],
    )
    def test_ambiguous_unless_there_is_a_default(self, request_) -> None:
        with pytest.raises(AmbiguousModel, match="scaling_factor, or the path"):
            infer_model(request_, SERVED, None)
        assert infer_model(request_, SERVED, "sdxl")[0].name == "sdxl"

    def test_nothing_fits(self) -> None:
        with pytest.raises(RequestError, match="no model here has such latents"):
            infer_model(self.decode((1, 8, 8, 8)), SERVED, None)

    def test_the_only_model_is_taken_so_that_its_own_error_is_shown(self) -> None:
        assert infer_model(self.decode((1, 8, 8, 8)), {"flux": SERVED["flux"]}, None)[0].name == "flux"


def test_moments(server, engines) -> None:
    image = torch.rand(1, 3, 16, 24).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = engines["sd-v1"].module.encode(image).latent_dist.parameters
    with Client(server) as client:
        reply = client.send(EncodeRequest(from_torch(image), value_range="signed", moments=True), model="sd-v1")
        assert reply.headers["channels-last"] == "True"
        assert torch.equal(to_torch(reply.tensor()), expected)
        with pytest.raises(ServerRefused, match="taesd has no posterior"):
            client.send(EncodeRequest(from_torch(image), moments=True), model="taesd")


class GatedEngine:
    """An engine that holds every decode until it is let go; so a test decides what is running and what waits."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.begun, self.go = threading.Semaphore(0), threading.Event()

    def __getattr__(self, name: str):
        return getattr(self._engine, name)

    def decode(self, *args, **kwargs):
        self.begun.release()
        assert self.go.wait(30)
        return self._engine.decode(*args, **kwargs)


@pytest.fixture
def gated(engines) -> GatedEngine:
    return GatedEngine(engines["sd-v1"])


class TestLoad:
    def test_a_full_line_says_so_early_and_loses_nothing(self, gated) -> None:
        app = create_app(LocalBackend({"sd-v1": gated}, queue_limit=2))
        with running(app) as address, ThreadPoolExecutor(8) as pool:

            def ask() -> httpx.Response:
                return httpx.post(
                    f"{address}/v1/sd-v1/decode", params=QUERY, content=LATENTS.data, headers=BINARY, timeout=60
                )

            first = pool.submit(ask)
            assert gated.begun.acquire(timeout=30)
            others = [pool.submit(ask) for _ in range(6)]
            # Two wait; the four beyond are answered while the device is still busy.
            refused = list(islice((future.result() for future in as_completed(others)), 4))
            assert httpx.get(f"{address}/health").status_code == 200
            gated.go.set()
            answers = [future.result() for future in (first, *others)]
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 4
        assert len(refused) == 4
        for answer in refused:
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert "waiting already" in answer.json()["error"]

    def test_clients_that_hang_up_cost_the_device_nothing(self, gated) -> None:
        backend = LocalBackend({"sd-v1": gated}, queue_limit=8)
        with running(create_app(backend)) as address, ThreadPoolExecutor(1) as pool:
            url = f"{address}/v1/sd-v1/decode"

            def ask(timeout: float) -> httpx.Response:
                return httpx.post(url, params=QUERY, content=LATENTS.data, headers=BINARY, timeout=timeout)

            first = pool.submit(ask, 60)
            assert gated.begun.acquire(timeout=30)
            for _ in range(8):
                with pytest.raises(httpx.ReadTimeout):
                    ask(0.2)
            # Eight filled the line and left; a ninth finds a place, and only two jobs ever run.
            ninth = ThreadPoolExecutor(1).submit(ask, 60)
            gated.go.set()
            assert first.result().status_code == ninth.result().status_code == 200
        assert gated.begun.acquire(timeout=1)
        assert not gated.begun.acquire(blocking=False)

    def test_many_clients_get_each_their_own_picture(self, server, engines) -> None:
        def ask(seed: int) -> bool:
            z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
            response = httpx.post(
                f"{server}/v1/sd-v1/decode",
                params={**QUERY, "output_type": "pt"},
                content=z.numpy().tobytes(),
                headers={**BINARY, "accept": "tensor/binary"},
            )
            answer = torch.frombuffer(bytearray(response.content), dtype=torch.float32).reshape(1, 3, 64, 64)
            return torch.equal(answer, expected[seed])

        with torch.inference_mode():
            expected = [
                engines["sd-v1"]
                .module.decode(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(s)))
                .sample
                for s in range(24)
            ]
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(24)))


class TestGoingDown:
    def test_the_running_job_is_finished_and_the_waiting_ones_are_told(self, gated) -> None:
        backend = LocalBackend({"sd-v1": gated}, queue_limit=4)
        job = VaeJob(gated.spec, DecodeRequest(LATENTS, output="signed"), PictureSize(1, 64, 64))

        async def scene() -> list[object]:
            loop = asyncio.get_running_loop()
            running_ = asyncio.create_task(backend.run(job))
            await loop.run_in_executor(None, gated.begun.acquire)
            waiting = asyncio.create_task(backend.run(job))
            await asyncio.sleep(0)
            closing = loop.run_in_executor(None, backend.close)
            with pytest.raises(ShuttingDown):
                await waiting
            assert backend.health() == "shutting down"
            gated.go.set()
            await closing
            with pytest.raises(ShuttingDown):
                await backend.run(job)
            return [await running_]

        (result,) = asyncio.run(scene())
        assert result.tensor.shape == (1, 3, 64, 64)
        assert set(result.milliseconds) == {"queue", "load", "device"}

    def test_a_bug_in_the_engine_fails_its_own_job_only(self, engines) -> None:
        class Broken(GatedEngine):
            def decode(self, *args, **kwargs):
                raise KeyError("a bug")

        with running(
            create_app(LocalBackend({"sd-v1": Broken(engines["sd-v1"]), "flux": engines["flux"]}))
        ) as address:
            failed = httpx.post(f"{address}/v1/sd-v1/decode", params=QUERY, content=LATENTS.data, headers=BINARY)
            assert failed.status_code == 500
            assert "unexpected failure" in failed.json()["error"]
            flux = {"shape": [1, 16, 4, 4], "dtype": "float32"}
            good = httpx.post(f"{address}/v1/flux/decode", params=flux, content=LATENTS.data, headers=BINARY)
            assert good.status_code == 200


class TestSettings:
    def test_variables_and_flags(self, monkeypatch) -> None:
        monkeypatch.setenv("HYBRIDGE_MODELS", "sdxl,flux")
        monkeypatch.setenv("HYBRIDGE_PORT", "9000")
        settings = Settings(port=9001)
        assert (settings.models, settings.port) == (("sdxl", "flux"), 9001)
        assert settings.limits.max_body_bytes == 256 * 1024**2

    def test_a_misspelt_variable_is_an_error(self, monkeypatch) -> None:
        monkeypatch.setenv("HYBRIDGE_PROT", "9000")
        with pytest.raises(HybridgeError, match="Try: HYBRIDGE_PORT"):
            refuse_unknown_variables()

    def test_upper_and_lower_case_are_the_same(self, monkeypatch) -> None:
        monkeypatch.setenv("hybridge_prot", "9000")
        with pytest.raises(HybridgeError, match=r"unknown variable hybridge_prot.*Try: HYBRIDGE_PORT"):
            refuse_unknown_variables()

    def test_empty_variables_are_none(self, monkeypatch) -> None:
        """An empty host would be every address, and an empty path the current folder."""
        plain, never_empty = Settings(), {"keys", "tls_cert", "tls_key"}
        for name in set(Settings.model_fields) - never_empty:
            monkeypatch.setenv(f"HYBRIDGE_{name.upper()}", "")
        refuse_unknown_variables()
        assert Settings() == plain
        for name in sorted(never_empty):
            monkeypatch.setenv(f"HYBRIDGE_{name.upper()}", "")
            with pytest.raises(HybridgeError, match=f"HYBRIDGE_{name.upper()} is empty"):
                refuse_unknown_variables()
            monkeypatch.delenv(f"HYBRIDGE_{name.upper()}")

    def test_variables_of_clients_on_the_same_machine(self, monkeypatch) -> None:
        for name in ("KEY", "CA", "PROFILES", "PROFILE_DESKTOP_URL"):
            monkeypatch.setenv(f"HYBRIDGE_{name}", "x")
        refuse_unknown_variables()

    def test_what_kubernetes_makes_for_a_service_of_our_name(self, monkeypatch) -> None:
        theirs = {
            "HYBRIDGE_SERVICE_HOST": "10.96.0.12",
            "HYBRIDGE_SERVICE_PORT": "8000",
            "HYBRIDGE_SERVICE_PORT_HTTP": "8000",
            "HYBRIDGE_PORT": "tcp://10.96.0.12:8000",
            "HYBRIDGE_PORT_8000_TCP": "tcp://[fd00::12]:8000",
            "HYBRIDGE_PORT_8000_TCP_PROTO": "tcp",
            "HYBRIDGE_PORT_8000_TCP_PORT": "8000",
            "HYBRIDGE_PORT_8000_TCP_ADDR": "fd00::12",
            "HYBRIDGE_GPU_SERVICE_HOST": "10.96.0.13",
            "HYBRIDGE_GPU_PORT": "tcp://10.96.0.13:8000",
        }
        for name, value in theirs.items():
            monkeypatch.setenv(name, value)
        refuse_unknown_variables()
        assert Settings().port == 8000
        assert Settings(port=9001).port == 9001

    @pytest.mark.parametrize(
        ("name", "value"),
        [("HYBRIDGE_SERVICE", "x"), ("HYBRIDGE_PORTS", "tcp://10.0.0.1:80"), ("HYBRIDGE_TLS_PORT", "8443")],
    )
    def test_what_kubernetes_does_not_make(self, name, value, monkeypatch) -> None:
        monkeypatch.setenv(name, value)
        with pytest.raises(HybridgeError, match=f"unknown variable {name}"):
            refuse_unknown_variables()

    @pytest.mark.parametrize("value", ["tcp://10.0.0.1", "http://10.0.0.1:80", "port"])
    def test_a_port_that_is_none(self, value, monkeypatch) -> None:
        monkeypatch.setenv("HYBRIDGE_PORT", value)
        with pytest.raises(ValueError, match="valid integer"):
            Settings()

    def test_frozen(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            Settings().port = 1  # type: ignore[misc]


def test_a_job_without_a_place_in_the_loop_is_not_lost_silently(gated, caplog) -> None:
    """The event loop that asked may be gone when the device is done; the device thread must survive that."""
    backend = LocalBackend({"sd-v1": replace(gated._engine)})

    async def ask_and_leave() -> None:
        job = VaeJob(gated.spec, DecodeRequest(LATENTS, output="signed"), PictureSize(1, 64, 64))
        task = asyncio.create_task(backend.run(job))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(ask_and_leave())
    assert backend.health() is None
    backend.close()
