"""Several servers behind one client: real processes, one of which is killed, and servers that do not work."""

from __future__ import annotations

import asyncio
import http.server
import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from forks import Forked

from hybridge.client import AsyncClient, Breaker, Client, Retry, ServerWarning
from hybridge.errors import BadAnswer, ClientError, ServerRefused, ServerUnreachable, UnknownModel
from hybridge.models import ModelSpec
from hybridge.protocol import (
    DecodeRequest,
    EncodeRequest,
    HttpResponse,
    TensorAnswer,
    WireTensor,
    write_answer,
    write_failure,
)
from hybridge.protocol.torch import from_torch, to_torch

LATENTS = np.ones((1, 4, 4, 6), np.float32)
PIXELS = write_answer(TensorAnswer(WireTensor("uint8", (1, 32, 48, 3), bytes(32 * 48 * 3))))
NEVER = Retry(attempts=1)

Handler = http.server.BaseHTTPRequestHandler
Serve = Callable[[Callable[[Handler, bytes], None]], str]

_SERVER = """
import sys
from hybridge.engine import Engine, EngineOptions
from hybridge.engine.loading import resolve
from hybridge.server.app import create_app
from hybridge.server.middleware.draining import Drain
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import ListenOptions, address_of, bind, run
engine = Engine.load(resolve("sd-v1=" + sys.argv[1]), EngineOptions(device="cpu"))
listener = bind("127.0.0.1", 0)
print(address_of(listener), flush=True)
listener.listen()
drain = Drain()
app = create_app(LocalBackend({"sd-v1": engine}), drain=drain)
run(app, [listener], ListenOptions(), drain, log_level="warning")
"""


@pytest.fixture
def processes(specs: dict[str, ModelSpec]) -> Iterator[list[tuple[Forked, str]]]:
    """Two servers in processes of their own, with the same model."""
    started = [Forked(_SERVER, specs["sd-v1"].source, stderr=subprocess.STDOUT) for _ in range(2)]
    try:
        yield [(process, process.stdout.readline().strip()) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stdout.close()


def test_one_of_two_is_killed_in_the_middle_of_100_decodes(processes: Any) -> None:
    (victim, dead), (_, alive) = processes
    latents = [torch.full((1, 4, 2, 2), index / 100) for index in range(100)]
    got: list[int] = []
    with Client([dead, alive], retries=Retry(first_wait_s=0.01)) as client:
        expected = [client.decode(z, output="pixels") for z in latents[::20]]
        with client.decode_queue(output="pixels", limit=8) as queue:
            for index, z in enumerate(latents):
                queue.put(z, tag=index)
                if index == 40:
                    victim.send_signal(signal.SIGKILL)
        results = list(queue)
        got = [finished.tag for finished in results]
        assert got == list(range(100))
        pixels = [finished.result() for finished in results]
        assert client._flows.fleet.servers[0].failures > 0
    assert all(torch.equal(a, b) for a, b in zip(pixels[::20], expected, strict=True))


# --------------------------------------------------------------------------------- servers that do not work


def fleet(handlers: dict[str, Callable[[httpx.Request], httpx.Response]], **arguments: Any) -> Client:
    def handle(request: httpx.Request) -> httpx.Response:
        return handlers[request.url.host](request)

    urls = [f"http://{host}" for host in handlers]
    arguments.setdefault("retries", NEVER)
    return Client(urls, transport=httpx.MockTransport(handle), sleep=lambda _: None, **arguments)


def says(response: HttpResponse, asked: list[str] | None = None) -> Callable[[httpx.Request], httpx.Response]:
    def handle(request: httpx.Request) -> httpx.Response:
        if asked is not None:
            asked.append(request.url.host)
        return httpx.Response(response.status, headers=response.headers, content=response.body)

    return handle


def lost(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


def refusal(status: int, code: str, message: str = "no") -> HttpResponse:
    body = f'{{"error": "{message}", "code": "{code}"}}'.encode()
    return HttpResponse(status, {"content-type": "application/json"}, body)


WEB_PAGE = HttpResponse(200, {"content-type": "text/html"}, b"<html>It works!</html>")
PROXY_PAGE = HttpResponse(502, {"content-type": "text/html"}, b"<html>Bad Gateway</html>")
CUT_SHORT = HttpResponse(200, PIXELS.headers, PIXELS.body[:-1])


@pytest.mark.parametrize(
    "broken",
    [
        lost,
        says(WEB_PAGE),
        says(PROXY_PAGE),
        says(CUT_SHORT),
        says(refusal(404, "UnknownModel")),
        says(refusal(503, "ModelUnavailable")),
        says(refusal(503, "ShuttingDown")),
        says(refusal(507, "OutOfMemory")),
        says(refusal(429, "Overloaded")),
    ],
    ids=["down", "web page", "proxy", "cut short", "no model", "no weights", "leaving", "no memory", "busy"],
)
def test_another_server_does_what_one_cannot(broken: Any) -> None:
    with fleet({"a": broken, "b": says(PIXELS)}) as client:
        for _ in range(6):
            assert client.decode(LATENTS, output="pixels").shape == (1, 32, 48, 3)


@pytest.mark.parametrize("status", [400, 401, 403, 413, 415])
def test_what_is_the_callers_own_fault_is_asked_once(status: int) -> None:
    asked: list[str] = []
    response = refusal(status, "RequestError")
    client = fleet({"a": says(response, asked), "b": says(response, asked)})
    with client, pytest.raises(ServerRefused, match="http://a "):
        client.decode(LATENTS, output="pixels")
    assert asked == ["a"]


def test_a_dead_server_is_soon_left_alone() -> None:
    asked: list[str] = []

    def dead(request: httpx.Request) -> httpx.Response:
        asked.append("a")
        return lost(request)

    with fleet({"a": dead, "b": says(PIXELS)}, breaker=Breaker(failures=2, pause_s=600)) as client:
        for _ in range(20):
            client.decode(LATENTS, output="pixels")
    assert asked == ["a", "a"]


def test_the_last_error_is_raised_when_nobody_can() -> None:
    waits: list[float] = []
    with fleet({"a": lost, "b": lost}, retries=Retry(attempts=2, random=lambda: 0.0)) as client:
        client._sleep = waits.append
        with pytest.raises(ServerUnreachable, match=r"http://[ab] cannot be reached"):
            client.decode(LATENTS, output="pixels")
    assert waits == [0.25]  # going over to another server needs no wait; going round again does


def test_a_fleet_of_none_is_refused_and_credentials_stay_with_their_server(stub: Any) -> None:
    with pytest.raises(ClientError, match="not a server's address"):
        Client([])
    with Client(["http://a", "http://me:s3cret@b"], transport=stub.transport) as client:
        assert repr(client) == "Client('http://a', 'http://b')"
        client.decode(LATENTS)
        client.decode(LATENTS)
        assert sorted("authorization" in seen.headers for seen in stub.seen) == [False, True]
        client.send(DecodeRequest(WireTensor.from_numpy(LATENTS)), endpoint="http://b/any")
        assert (stub.seen[-1].path, "authorization" in stub.seen[-1].headers) == ("/any", True)


def test_both_clients_go_round(stub: Any) -> None:
    async def ask() -> Counter[str]:
        asked: Counter[str] = Counter()
        are_there = asyncio.Event()

        async def handle(request: httpx.Request) -> httpx.Response:
            """Answers when all have come: how soon a server answers has a say in who is asked next."""
            asked[request.url.host] += 1
            if asked.total() == 8:
                are_there.set()
            await asyncio.wait_for(are_there.wait(), 30)
            return stub.handle(request)

        async with AsyncClient(["http://a", "http://b"], transport=httpx.MockTransport(handle)) as client:
            await asyncio.gather(*(client.decode(LATENTS, output="pixels") for _ in range(8)))
        return asked

    assert asyncio.run(ask()) == {"a": 4, "b": 4}


# --------------------------------------------------------------------------------------- what to try, in words


@pytest.mark.parametrize(
    ("response", "kind", "words"),
    [
        (
            refusal(401, "Unauthorised", "a wrong key"),
            ServerRefused,
            "a wrong key. Try: the server's key as api_key",
        ),
        (HttpResponse(403, {"content-type": "text/html"}, b"<html>"), ServerRefused, "the server's key as api_key"),
        (refusal(400, "UnknownParameter"), ServerRefused, "the server's version"),
        (refusal(404, "http-404"), ServerRefused, "the server's version"),
        (HttpResponse(200, {**PIXELS.headers, "dtype": "float8"}, PIXELS.body), BadAnswer, "the server's version"),
        (CUT_SHORT, BadAnswer, "cut short on the way"),
        (WEB_PAGE, BadAnswer, "a web page or a proxy may be answering"),
        (PROXY_PAGE, BadAnswer, "a web page or a proxy may be answering"),
    ],
    ids=["key", "proxy's key", "parameter", "path", "dtype", "cut short", "web page", "proxy"],
)
def test_every_failure_names_the_server_and_what_to_try(response: Any, kind: Any, words: str) -> None:
    with fleet({"gpu-box": says(response)}) as client, pytest.raises(kind) as caught:
        client.decode(LATENTS, output="pixels")
    assert str(caught.value).startswith("http://gpu-box")
    assert words in str(caught.value)


# ------------------------------------------------------------------------------------------------ fallback


@pytest.fixture
def vae(specs: dict[str, ModelSpec]) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(specs["sd-v1"].source).eval()


@pytest.mark.parametrize("output", ["picture", "pixels", "unit", "signed"])
def test_a_local_vae_gives_what_a_server_would(server: str, vae: AutoencoderKL, output: Any) -> None:
    latents = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(5))
    with Client(server) as client:
        expected = client.decode(latents, model="sd-v1", scaling_factor=0.18215, output=output)
    with (
        fleet({"a": lost}, fallback=vae) as client,
        pytest.warns(ServerWarning, match="http://a cannot be reached"),
    ):
        local = client.decode(latents, model="sd-v1", scaling_factor=0.18215, output=output)
    if output == "picture":
        assert local.tobytes() == expected.tobytes()
    else:
        assert torch.equal(local, expected)


def test_a_local_vae_encodes_and_unpacks_too(server: str, specs: dict[str, ModelSpec], photograph: Any) -> None:
    flux = AutoencoderKL.from_pretrained(specs["flux"].source).eval()
    packed = torch.randn(1, 4 * 6, 64, generator=torch.Generator().manual_seed(6))
    size = {"height": 64, "width": 96}
    noise = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(7))
    moments = EncodeRequest(from_torch(noise), moments=True)

    def ask(client: Client) -> list[Any]:
        return [
            client.decode(packed, model="flux", do_scaling=True, output="signed", **size),
            client.encode(noise, model="flux", scaling_factor=0.3611, shift_factor=0.1159),
            client.encode(noise, model="flux", sample=True, seed=3),
            to_torch(client.send(moments, model="flux").tensor()),
        ]

    with Client(server) as client:
        expected = ask(client)
    with fleet({"a": lost}, fallback=flux) as client, pytest.warns(ServerWarning):
        assert all(torch.equal(a, b) for a, b in zip(ask(client), expected, strict=True))


def test_a_fallback_is_not_asked_for_the_callers_own_mistakes_nor_while_a_server_can(vae: AutoencoderKL) -> None:
    with fleet({"a": says(refusal(401, "Unauthorised"))}, fallback=vae) as client, pytest.raises(ServerRefused):
        client.decode(LATENTS)
    with fleet({"a": lost, "b": says(PIXELS)}, fallback=vae) as client:
        client.decode(LATENTS, output="pixels")  # a warning would be an error


def test_no_dead_server_is_waited_for_again_and_again_where_there_is_a_fallback() -> None:
    asked: list[str] = []

    def dead(request: httpx.Request) -> httpx.Response:
        asked.append("a")
        return lost(request)

    answer = TensorAnswer(WireTensor("uint8", (1, 1, 1, 3), b"rgb"))
    breaker = Breaker(failures=2, pause_s=600)
    with fleet({"a": dead}, fallback=lambda _: answer, retries=Retry(attempts=2), breaker=breaker) as client:
        for _ in range(5):
            with pytest.warns(ServerWarning):
                assert client.decode(LATENTS, output="pixels").shape == (1, 1, 1, 3)
    assert len(asked) == 2


def test_the_async_client_falls_back_beside_its_event_loop(vae: AutoencoderKL) -> None:
    async def decode() -> Any:
        transport = httpx.MockTransport(lost)
        async with AsyncClient("http://a", transport=transport, retries=NEVER, fallback=vae) as client:
            return await client.decode(LATENTS, output="pixels")

    with pytest.warns(ServerWarning):
        assert asyncio.run(decode()).shape == (1, 32, 48, 3)


def test_what_cannot_be_a_fallback() -> None:
    with pytest.raises(ClientError, match="saw int"):
        Client("http://a", fallback=3)


def test_servers_with_different_models(serve: Serve) -> None:
    """Each model is asked for where it is, and a server that does not have it is asked once at most."""
    asked: Counter[tuple[str, str]] = Counter()

    def having(name: str, port: str) -> str:
        def talk(handler: Handler, body: bytes) -> None:
            path = handler.path.partition("?")[0]
            asked[port, path] += 1
            if path == "/v1/models":
                document = json.dumps({"models": [{"name": name}]}).encode()
                answer = HttpResponse(200, {"content-type": "application/json"}, document)
            elif path == f"/v1/{name}/decode":
                answer = PIXELS
            else:
                answer = write_failure(UnknownModel("no such model on this server", expected=f"one of {name}"))
            handler.send_response(answer.status)
            for header, value in {**answer.headers, "content-length": str(len(answer.body))}.items():
                handler.send_header(header, value)
            handler.end_headers()
            handler.wfile.write(answer.body)

        return serve(talk)

    servers = [having("sdxl", "one"), having("wan", "two")]
    with Client(servers, retries=NEVER) as client:
        for _ in range(4):
            for model in ("sdxl", "wan"):
                client.decode(LATENTS, model=model, output="pixels")
        assert asked["one", "/v1/sdxl/decode"] == asked["two", "/v1/wan/decode"] == 4
        assert asked["one", "/v1/wan/decode"] <= 1
        assert asked["two", "/v1/sdxl/decode"] <= 1
        assert [model["name"] for model in client.models()] == ["sdxl", "wan"]
        with pytest.raises(ServerRefused, match="no such model"):
            client.decode(LATENTS, model="flux", output="pixels")
    dead = "http://127.0.0.1:9"
    with Client([dead, *servers], retries=NEVER) as client:
        assert [model["name"] for model in client.models()] == ["sdxl", "wan"]
    with Client([dead, dead], retries=NEVER) as client, pytest.raises(ServerUnreachable):
        client.models()
