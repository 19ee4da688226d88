"""Videos that are sent while they are decoded: bytes that leave early, readers that are slow or leave, failures.

The model's decoder waits at a gate before a chunk that a test chooses, so nothing depends on time.
"""

from __future__ import annotations

import asyncio
import io
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import av
import diffusers
import httpx
import numpy as np
import pytest
import torch

from hybridge.engine import Engine, EngineOptions, frames_of, to_pixels
from hybridge.models import CATALOGUE
from hybridge.protocol.video_reader import read_video
from hybridge.server.app import create_app
from hybridge.server.http.job_stream import JobStream
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running
from hybridge.server.settings import Settings

#: Latent frames, and the frames that they become.
LATENT_FRAMES = 9
FRAMES = 33

#: As unmodified clients of diffusers send it.
TEXT = {"content-type": "tensor/binary", "accept": "text/plain"}


@dataclass
class Gate:
    """Holds the decoder before a chunk of its choice, or fails there."""

    closed_at: int | None = None
    error: Exception | None = None
    chunks: int = 0
    opened: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)

    def pass_through(self) -> None:
        """Called by the decoder before each chunk."""
        if self.chunks == self.closed_at:
            self.reached.set()
            assert self.opened.wait(60)
            if self.error is not None:
                raise self.error
        self.chunks += 1

    @contextmanager
    def at(self, chunk: int, error: Exception | None = None) -> Iterator[None]:
        self.closed_at, self.error, self.chunks = chunk, error, 0
        self.opened.clear()
        self.reached.clear()
        try:
            yield
        finally:
            self.opened.set()
            self.closed_at = self.error = None


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, gate: Gate) -> Engine:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wan")
    diffusers.AutoencoderKLWan(base_dim=4, num_res_blocks=1).eval().save_pretrained(folder)
    spec = replace(CATALOGUE["wan-2.1"], source=str(folder), subfolder=None)
    loaded = Engine.load(spec, EngineOptions(device="cpu", exactness="bitwise"))
    loaded.module.decoder.register_forward_pre_hook(lambda *_: gate.pass_through())
    return loaded


class Records(dict[str, Any]):
    """The records of requests that have ended, by their id; that may be after their clients have the answer."""

    def __init__(self) -> None:
        super().__init__()
        self._change = threading.Condition()

    def observe(self, record: Any) -> None:
        with self._change:
            self[record.request_id] = record
            self._change.notify_all()

    def of(self, request: dict[str, Any]) -> Any:
        """The record of a request, as soon as it has ended."""
        name = request["headers"]["x-request-id"]
        with self._change:
            assert self._change.wait_for(lambda: name in self, 60)
            return self[name]


@pytest.fixture(scope="module")
def records() -> Records:
    return Records()


@pytest.fixture(scope="module")
def server(engine: Engine, records: Records) -> Iterator[str]:
    settings = Settings(deadline_s=60)
    app = create_app(LocalBackend({"wan-2.1": engine}), settings, observers=[records.observe])
    with running(app) as address:
        yield f"{address}/v1/wan-2.1/decode"


def latents(frames: int = LATENT_FRAMES) -> torch.Tensor:
    return torch.randn(1, 16, frames, 8, 8, generator=torch.Generator().manual_seed(1))


def asked(tensor: torch.Tensor | None = None, **query: Any) -> dict[str, Any]:
    tensor = latents() if tensor is None else tensor
    params = {"shape": list(tensor.shape), "dtype": "float32", "output_type": "mp4", **query}
    headers = {**TEXT, "x-request-id": uuid.uuid4().hex}
    return {"params": params, "content": tensor.numpy().tobytes(), "headers": headers, "timeout": 60}


@pytest.fixture(scope="module")
def expected(engine: Engine) -> np.ndarray[Any, Any]:
    return to_pixels(frames_of(engine.decode(latents()))).numpy()


def assert_is_film(data: bytes, expected: np.ndarray[Any, Any], far: float = 12) -> None:
    frames = read_video(data, max_pixels=10**7).to_numpy()
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean() < far


@pytest.mark.parametrize("output_type", ["mp4", "webm", "gif"])
def test_bytes_leave_before_half_of_the_frames_are_decoded(server, gate, expected, output_type) -> None:
    with gate.at(4), httpx.stream("POST", server, **asked(output_type=output_type)) as response:
        assert response.status_code == 200
        parts = response.iter_raw()
        first = b""
        while len(first) < 4000:  # which is more than a header
            first += next(parts)
        assert gate.chunks <= 4, "the first four latent frames are 13 of 33 frames"
        with av.open(io.BytesIO(first)) as container:
            assert sum(1 for packet in container.demux(video=0) if packet.size)
        gate.opened.set()
        rest = b"".join(parts)
    assert gate.chunks == LATENT_FRAMES
    assert_is_film(first + rest, expected, far=16)


def test_what_it_says_of_itself(server, expected, records) -> None:
    request = asked(fps=24, quality=90)
    response = httpx.post(server, **request)
    assert response.headers["content-type"] == "video/mp4"
    assert response.headers["hybridge-model"] == "wan-2.1"
    assert response.headers["x-accel-buffering"] == "no"
    assert_is_film(response.content, expected)
    with av.open(io.BytesIO(response.content)) as container:
        assert container.streams.video[0].average_rate == 24
    record = records.of(request)
    assert (record.status, record.sent_bytes, record.shared_by) == (200, len(response.content), 1)
    assert {"queue", "device"} <= set(record.milliseconds)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_job_is_waited_for_once_all_is_sent_and_given_up_before(is_whole: bool) -> None:
    """The last bytes may be read before the job has ended, and its record then had none of its times."""

    async def scene() -> asyncio.Task[str]:
        job = asyncio.create_task(asyncio.sleep(0.1, "done"))

        async def pieces() -> AsyncIterator[bytes]:
            yield b"all"
            stream.is_whole = is_whole

        async def send(_: Any) -> None:
            pass

        stream = JobStream(pieces(), job, {})
        await stream({"type": "http"}, asyncio.Event().wait, send)  # type: ignore[arg-type] # nobody leaves
        await asyncio.wait({job})
        return job

    assert asyncio.run(scene()).cancelled() is not is_whole


def test_a_webp_leaves_at_its_end(server, expected) -> None:
    assert_is_film(httpx.post(server, **asked(output_type="webp")).content, expected)


def test_a_failure_before_the_first_bytes_has_a_status(server, gate) -> None:
    with gate.at(1, ValueError("broken")):
        gate.opened.set()
        response = httpx.post(server, **asked())
    assert response.status_code == 500
    assert "unexpected failure" in response.json()["error"]


def test_a_failure_after_the_first_bytes_breaks_the_transfer_off(server, gate, records) -> None:
    """No client can take what it has for a shorter film."""
    failing, following = asked(), asked(latents(1))
    with gate.at(6, ValueError("broken")), httpx.stream("POST", server, **failing) as response:
        parts = response.iter_raw()
        received = next(parts)
        gate.opened.set()
        with pytest.raises(httpx.RemoteProtocolError):
            b"".join(parts)
    assert received
    assert httpx.post(server, **following).status_code == 200
    assert [records.of(request).status for request in (failing, following)] == [500, 200]


def test_a_client_that_leaves_frees_the_device(server, gate, records) -> None:
    left = asked()
    with gate.at(6):
        with httpx.stream("POST", server, **left) as response:
            parts = response.iter_raw()
            assert next(parts)
            assert gate.reached.wait(60)
        assert records.of(left).status == 499
        gate.opened.set()
        # The chunk at the gate was the last one: after it comes the one of the next job.
        assert httpx.post(server, **asked(latents(1))).status_code == 200
    assert gate.chunks == 7 + 1


def test_a_reader_that_stands_still_does_not_hold_the_device(server, gate, expected) -> None:
    """The film goes on behind its back, and it gets all of it in the end."""
    with httpx.stream("POST", server, **asked()) as response:
        parts = response.iter_raw(64)
        first = next(parts)
        assert httpx.post(server, **asked(latents(1))).status_code == 200
        assert_is_film(first + b"".join(parts), expected)


def test_a_deadline_ends_it(server, gate) -> None:
    """Before the first bytes with a status, after them by breaking off."""
    request = asked()
    request["headers"] = {**TEXT, "request-timeout": "1.5"}
    with gate.at(6), httpx.stream("POST", server, **request) as response:
        if response.status_code == 200:
            with pytest.raises(httpx.RemoteProtocolError):
                response.read()
        else:
            assert response.status_code == 504


def test_an_async_job_keeps_the_whole_file(server, expected) -> None:
    request = asked()
    request["headers"] = {**TEXT, "prefer": "respond-async"}
    accepted = httpx.post(server, **request)
    assert accepted.status_code == 202
    base = server.rsplit("/v1/", 1)[0]
    httpx.get(f"{base}{accepted.headers['location']}/events", timeout=60)  # until it is over
    result = httpx.get(f"{base}{accepted.headers['location']}/result")
    assert result.headers["content-type"] == "video/mp4"
    assert_is_film(result.content, expected)


def test_two_at_a_time(server, expected) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(httpx.post(server, **asked()).content)) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for data in found:
        assert_is_film(data, expected)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ({"fps": 0}, 400, "1 to 240"),
        ({"codec": "hevc", "pixel_format": "yuv420p10"}, 400, "yuv420p"),
        ({"preview": True}, 400, "not of a video"),
    ],
)
def test_bad_input(server, query, status, said) -> None:
    response = httpx.post(server, **asked(**query))
    assert response.status_code == status
    assert said in response.json()["error"]


def test_a_video_is_encoded_from_a_file(server, engine, expected) -> None:
    film = httpx.post(server, **asked()).content
    encode = server.replace("decode", "encode")
    response = httpx.post(encode, content=film, timeout=60)
    assert response.status_code == 200, response.text
    assert response.headers["shape"] == f"[1, 16, {LATENT_FRAMES}, 8, 8]"
    frames = torch.from_numpy(read_video(film, max_pixels=10**7).to_numpy().copy())
    assert response.content == engine.encode(frames).float().numpy().tobytes()


def test_frames_that_the_model_drops(server) -> None:
    film = httpx.post(server, **asked(latents(2))).content  # 5 frames
    four = read_video(film, max_pixels=10**7).to_numpy()[:4]
    query = {"shape": list(four.shape), "dtype": "uint8"}
    encode = server.replace("decode", "encode")
    warned = httpx.post(encode, params=query, content=four.tobytes())
    assert warned.headers["shape"] == "[1, 16, 1, 8, 8]"
    assert "the last 3 of 4 frames were left out" in warned.headers["hybridge-warning"]
    refused = httpx.post(encode, params={**query, "drop_frames": False}, content=four.tobytes())
    assert refused.status_code == 400
    assert "would be left out" in refused.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"GIF89a\x10\x00\x10\x00\x00\x00\x00;", 400, "zero frames"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", 400, "no `moov`"),
        (b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\0\0\0\0\1\0\1\0\0\2\0;", 413, "65535×65535"),
    ],
)
def test_films_that_are_not_read(server, body, status, said) -> None:
    response = httpx.post(server.replace("decode", "encode"), content=body)
    assert response.status_code == status, response.text
    assert said in response.json()["error"]
