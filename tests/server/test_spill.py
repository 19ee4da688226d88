"""``--spill``: activations in a folder, where a request would be refused for want of memory."""

from __future__ import annotations

import errno
import http.client
import os
import queue
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hybridge.cli.application import application
from hybridge.engine import Engine, EngineOptions
from hybridge.engine.memory.offload import Offloaded
from hybridge.errors import HybridgeError, TooLarge
from hybridge.models import ModelSpec
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.draining import Drain
from hybridge.server.process.server import ListenOptions, running
from hybridge.server.settings import Settings

WAIT_S = 30
SIDE = 64
QUERY = f"shape=1&shape=4&shape={SIDE}&shape={SIDE}&dtype=float32"
KEPT_OFF = EngineOptions(device="cpu")


@pytest.fixture(scope="module")
def latents() -> bytes:
    noise = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    return noise.numpy().tobytes()


@pytest.fixture(scope="module")
def spec(specs: dict[str, ModelSpec]) -> ModelSpec:
    return specs["sd-v1"]


@pytest.fixture(scope="module")
def tight_bytes(spec) -> int:
    """Of weights and a run: too little without parking, and more than enough with it."""
    least = []
    for options in (KEPT_OFF, replace(KEPT_OFF, spill=Path(tempfile.gettempdir()))):
        with pytest.raises(TooLarge) as refused:
            Engine.load(spec, options).plan("decode", 1, 8 * SIDE, 8 * SIDE, budget_bytes=1)
        least.append(refused.value.least_bytes)
    in_memory, parked = least
    assert parked < in_memory
    return Engine.expected_bytes(spec, KEPT_OFF) + (in_memory + parked) // 2


def backend(spec: ModelSpec, memory_bytes: int | None, spill: Path | None) -> LocalBackend:
    """As ``hybridge serve --memory … --spill …`` makes it."""
    settings = Settings(memory=memory_bytes, spill=spill)
    options = replace(KEPT_OFF, spill=settings.spill)
    return LocalBackend({}, cold=[spec], options=options, memory_bytes=settings.memory)


def decode(address: str, latents: bytes, side: int = SIDE, **more: Any) -> httpx.Response:
    query = {"shape": [1, 4, side, side], "dtype": "float32", "image_format": "png"}
    body, headers = latents[: 16 * side**2], {"content-type": "tensor/binary"}
    return httpx.post(f"{address}/v1/sd-v1/decode", params=query, content=body, headers=headers, **more)


def pixels(answer: httpx.Response) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(BytesIO(answer.content)), dtype=int)


def said(answer: httpx.Response) -> dict[str, str]:
    return dict(part.split("=") for part in answer.headers["hybridge-plan"].split("; "))


def test_what_would_be_refused_is_answered(spec, tight_bytes, latents, tmp_path) -> None:
    with running(create_app(backend(spec, tight_bytes, None))) as address:
        refused = decode(address, latents, timeout=WAIT_S)
    assert (refused.status_code, refused.json()["code"]) == (413, "TooLarge")
    with running(create_app(backend(spec, None, None))) as address:
        free = decode(address, latents, timeout=WAIT_S)
    with running(create_app(backend(spec, tight_bytes, tmp_path))) as address:
        spilt, small = decode(address, latents, timeout=WAIT_S), decode(address, latents, 8, timeout=WAIT_S)
        assert not [*tmp_path.iterdir()]
    assert said(free)["mode"] not in ("spill", "tiles")
    assert (spilt.status_code, said(spilt)["mode"]) == (200, "spill")
    assert int(said(spilt)["peak_bytes"]) + Engine.expected_bytes(spec, KEPT_OFF) <= tight_bytes
    assert np.abs(pixels(spilt) - pixels(free)).max() <= 1
    assert said(small)["mode"] != "spill"  # what fits in memory stays there


def test_the_folder_changes_nothing_about_weights(spec, tmp_path) -> None:
    options = replace(KEPT_OFF, spill=tmp_path)
    assert Engine.expected_bytes(spec, options) == Engine.load(spec, options).weights_bytes
    assert Engine.expected_bytes(spec, options) == Engine.expected_bytes(spec, KEPT_OFF)


class Held:
    """A run that parks is held after its first activation, until it may go on."""

    def __init__(self) -> None:
        self.has_parked, self.may_go_on = threading.Event(), threading.Event()


@pytest.fixture
def held(monkeypatch) -> Iterator[Held]:
    hold, park = Held(), Offloaded.__init__

    def first(self: Offloaded, *arguments: Any) -> None:
        park(self, *arguments)
        hold.has_parked.set()
        assert hold.may_go_on.wait(WAIT_S)

    monkeypatch.setattr(Offloaded, "__init__", first)
    yield hold
    hold.may_go_on.set()


def mapped(folder: Path) -> int:
    """Files in a folder, also those without a name, that this process holds."""
    return sum(f" {folder}/" in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.skipif(sys.platform != "linux", reason="nameless files are looked for in Linux's own list")
def test_a_client_that_hangs_up_leaves_nothing(spec, tight_bytes, latents, tmp_path, held) -> None:
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    app = create_app(backend(spec, tight_bytes, tmp_path), observers=[lambda record: ended.put(record.status)])

    with running(app) as address:
        hanging_up = http.client.HTTPConnection(address.removeprefix("http://"))
        hanging_up.request("POST", f"/v1/sd-v1/decode?{QUERY}", latents, {"content-type": "tensor/binary"})
        assert held.has_parked.wait(WAIT_S)
        hanging_up.close()
        assert ended.get(timeout=WAIT_S) == 499
        assert mapped(tmp_path) == 1
        held.may_go_on.set()
        assert decode(address, latents, 8, timeout=WAIT_S).status_code == 200  # after what was stopped
        assert mapped(tmp_path) == 0
        assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(sys.platform != "linux", reason="nameless files are looked for in Linux's own list")
def test_going_down_leaves_nothing(spec, tight_bytes, latents, tmp_path, held) -> None:
    drain, spilling = Drain(), backend(spec, tight_bytes, tmp_path)
    app = create_app(spilling, drain=drain)

    async def let_go() -> None:
        held.may_go_on.set()

    drain.end_with(let_go)  # when the grace period is over
    with ThreadPoolExecutor(1) as pool:
        with running(app, listening=ListenOptions(grace_s=0.1), drain=drain) as address:
            asking = pool.submit(decode, address, latents, timeout=WAIT_S)
            assert held.has_parked.wait(WAIT_S)
        late = asking.result()
    assert (late.status_code, late.json()["code"]) == (503, "ShuttingDown")
    assert spilling.health() == "shutting down"
    assert mapped(tmp_path) == 0
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room is taken in another way here")
def test_a_full_disk_fails_one_request(spec, tight_bytes, latents, tmp_path, monkeypatch) -> None:
    def no_room(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with running(create_app(backend(spec, tight_bytes, tmp_path))) as address:
        with monkeypatch.context() as full:
            full.setattr("hybridge.engine.memory.offload.os.posix_fallocate", no_room)
            failed = decode(address, latents, timeout=WAIT_S)
            assert decode(address, latents, 8, timeout=WAIT_S).status_code == 200
        again = decode(address, latents, timeout=WAIT_S)
    assert (failed.status_code, failed.json()["code"]) == (507, "OutOfMemory")
    assert "no room to offload" in failed.json()["error"]
    assert os.strerror(errno.ENOSPC) in failed.json()["error"]
    assert (again.status_code, said(again)["mode"]) == (200, "spill")


@pytest.mark.parametrize("kind", ["missing", "file", "closed"])
def test_a_folder_that_cannot_be_used_is_refused_at_the_start(kind, tmp_path) -> None:
    # Nobody can make a file there, not even root, who may write to any folder that chmod closes.
    folder = Path("/proc") if kind == "closed" else tmp_path / kind
    if kind == "closed" and not folder.is_dir():
        pytest.skip("this system has no folder that is closed to all")
    if kind == "file":
        folder.write_text("")
    done = CliRunner().invoke(application, ["serve", "--spill", str(folder), "--port", "0"])
    refusal = str(done.exception)
    assert isinstance(done.exception, HybridgeError)
    assert refusal.startswith(f"setting spill is wrong: saw {folder}, expected")
    assert "a folder that can be written to" in refusal
