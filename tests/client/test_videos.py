"""Videos by both clients and the command line, through a real server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import diffusers
import numpy as np
import pytest
import torch
from commands import hybridge
from hostile import Hostile
from PIL import Image
from safetensors.torch import load_file, save_file

from hybridge import AsyncClient, Client
from hybridge.client.answer_limits import check, most_bytes
from hybridge.engine import Engine, EngineOptions, frames_of, to_pixels
from hybridge.errors import BadAnswer, ClientError, RequestError, ServerRefused
from hybridge.models import CATALOGUE
from hybridge.protocol import DecodeRequest, Scaling, TensorAnswer, VideoOptions, WireTensor
from hybridge.protocol.receipt import Receipt
from hybridge.protocol.torch import from_torch
from hybridge.protocol.video_reader import read_video
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

LATENTS = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
SIZE = (9, 64, 64, 3)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wan")
    diffusers.AutoencoderKLWan(base_dim=4, num_res_blocks=1).eval().save_pretrained(folder)
    spec = replace(CATALOGUE["wan-2.1"], source=str(folder), subfolder=None)
    return Engine.load(spec, EngineOptions(device="cpu", exactness="bitwise"))


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[str]:
    with running(create_app(LocalBackend({"wan-2.1": engine}))) as address:
        yield address


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[Client]:
    with Client(server) as made:
        yield made


@pytest.fixture(scope="module")
def expected(engine: Engine) -> np.ndarray[Any, Any]:
    return to_pixels(frames_of(engine.decode(LATENTS))).numpy()


def assert_is_film(data: bytes, expected: np.ndarray[Any, Any], far: float = 12) -> None:
    frames = read_video(data, max_pixels=10**7).to_numpy()
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean() < far


def test_answers_to_latents_of_other_axes_than_five(client: Client) -> None:
    """One frame without its axis, and LTX-Video's packed tokens: as many frames as they can be."""
    one = client.decode(LATENTS[:, :, 0], output="signed")
    assert torch.equal(torch.as_tensor(one), torch.as_tensor(client.decode(LATENTS[:, :, :1], output="signed")))
    packed = DecodeRequest(WireTensor("float32", (1, 12, 8), bytes(384)), height=64, width=64, output="signed")
    for frames, is_possible in ((17, True), (24, True), (25, False)):
        answer = TensorAnswer(WireTensor("float16", (1, 3, frames, 64, 64), bytes(2 * 3 * frames * 64 * 64)))
        with contextlib.nullcontext() if is_possible else pytest.raises(BadAnswer):
            check(packed, answer)
    assert most_bytes(packed) >= 24 * 3 * 64 * 64 * 4


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif", "webp"])
def test_a_file_is_written_as_it_arrives(client: Client, expected, tmp_path: Path, suffix: str) -> None:
    told: list[tuple[int, int | None]] = []
    target = tmp_path / f"film.{suffix}"
    path = client.decode_video(LATENTS, target, on_frame=lambda *at: told.append(at))
    assert path == target
    assert_is_film(path.read_bytes(), expected, far=16)
    assert list(tmp_path.iterdir()) == [target]
    if suffix in ("mp4", "webm"):
        assert told == sorted(told)
        assert told[-1] == (9, 9)


def test_the_kind_of_video(client: Client, expected) -> None:
    data = client.decode_video(LATENTS, video=VideoOptions("mp4", 24, "h264", "yuv444p"), quality=100)
    assert isinstance(data, bytes)
    assert_is_film(data, expected, far=8)
    with av.open(io.BytesIO(data)) as container:
        (stream,) = container.streams
        assert (stream.average_rate, stream.codec_context.pix_fmt) == (24, "yuv444p")
    assert client.decode(LATENTS, output="video", video=VideoOptions("gif"))[:6] == b"GIF89a"


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_a_film_says_what_made_it(client: Client, expected, tmp_path: Path, suffix: str) -> None:
    request = DecodeRequest(
        from_torch(LATENTS), Scaling("model"), output="video", video=VideoOptions(suffix), metadata=True
    )
    reply = client.send(request, model="wan-2.1")
    said = Receipt.from_header(reply.headers["hybridge-receipt"]).facts
    assert (said["model"], said["exactness"], said["mode"]) == ("wan-2.1", "bitwise", "whole")
    path = client.decode_video(LATENTS, tmp_path / f"a.{suffix}", model="wan-2.1", do_scaling=True, metadata=True)
    assert_is_film(path.read_bytes(), expected, far=24)
    with av.open(str(path)) as file:
        tags = {name.lower(): value for name, value in file.metadata.items()}
    facts = json.loads(tags["comment"])["hybridge"]
    assert facts["weights"].startswith("sha256:")
    assert facts == {**said, "weights": facts["weights"], "latents": facts["latents"], "scaling": "model - -"}
    assert facts["latents"] == f"sha256:{hashlib.sha256(request.latents.data).hexdigest()}"
    plain = client.decode(LATENTS, output="video", model="wan-2.1", do_scaling=True, metadata=False)
    assert b"sha256" not in plain


def test_the_async_client(server: str, expected, tmp_path: Path) -> None:
    async def scene() -> tuple[Path, bytes, Any]:
        async with AsyncClient(server) as client:
            path = await client.decode_video(LATENTS, tmp_path / "film.mp4")
            return path, await client.decode_video(LATENTS), await client.encode_video(path)

    path, data, latents = asyncio.run(scene())
    assert path.read_bytes() == data
    assert_is_film(data, expected)
    assert latents.shape == LATENTS.shape


def test_queues(client: Client, expected, tmp_path: Path) -> None:
    with client.decode_queue(output="video", video=VideoOptions("webm")) as queue:
        for _ in range(2):
            queue.put(LATENTS)
    films = [finished.result() for finished in queue]
    for film in films:
        assert_is_film(film, expected, far=16)
    with client.encode_queue(kind="torch") as encoding:
        encoding.put(films[0])
        encoding.put([Image.fromarray(frame) for frame in expected])
    assert [finished.result().shape for finished in encoding] == [LATENTS.shape] * 2


def test_what_can_be_encoded(client: Client, engine: Engine, expected, tmp_path: Path) -> None:
    latents = engine.encode(torch.from_numpy(expected))
    pictures = [Image.fromarray(frame) for frame in expected]
    for video in (
        pictures,
        expected,
        torch.from_numpy(expected),
        list(expected),
        tuple(torch.from_numpy(expected)),
    ):
        assert torch.equal(torch.as_tensor(client.encode_video(video)), latents)
    # A GIF is a video here, and a picture to encode(), as it always was.
    gif = tmp_path / "film.gif"
    client.decode_video(LATENTS, gif)
    assert client.encode_video(gif).shape == LATENTS.shape
    with pytest.warns(UserWarning, match="of the animation the first frame was read"):
        assert client.encode(gif).shape == (1, 16, 1, 8, 8)
    film = client.decode_video(LATENTS)
    for video in (film, bytearray(film)):
        assert client.encode_video(video).shape == client.encode(video).shape == LATENTS.shape
    animation = client.decode_video(LATENTS, video=VideoOptions("webp"))
    assert client.encode_video(animation).shape == LATENTS.shape


def test_frames_that_are_dropped(client: Client, expected) -> None:
    with pytest.warns(UserWarning, match="the last 3 of 8 frames were left out"):
        assert client.encode_video(expected[:8]).shape == (1, 16, 2, 8, 8)
    with pytest.raises(ServerRefused, match="would be left out"):
        client.encode_video(expected[:8], drop_frames=False)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([], "at least one frame"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (16, 8))], "frame 1 has 16×8"),
        ([np.zeros((8, 8, 3), np.float32)], "uint8"),
        ([np.zeros((8, 8), np.uint8)], "frame 0"),
    ],
)
def test_frames_that_are_no_video(client: Client, frames: list[Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        client.encode_video(frames)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"to": "film.avi"}, r"\.mp4, \.webm"),
        ({"to": "film.gif", "video": VideoOptions("mp4")}, r"mp4 and \.gif"),
    ],
)
def test_what_cannot_be_asked_for(client: Client, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        client.decode_video(LATENTS, **arguments)


def head(*lines: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"content-type: video/mp4", *lines, b"", b""])


BOX = b"\0\0\0\x10ftypmp42\0\0\0\0"
BREAKING = {
    "broken off": head(b"transfer-encoding: chunked") + b"10\r\n" + BOX + b"\r\n",
    "broken off at a border": head(b"content-length: 32") + BOX,
    "cut short": head(b"content-length: 20") + BOX + b"\0\0\1\0",
    "another file": head(b"content-length: 6").replace(b"video/mp4", b"image/gif") + b"GIF89a",
    "no boxes": head(b"content-length: 8") + bytes(8),
    "too much": head(b"content-length: 99999999999") + BOX,
}


@pytest.mark.parametrize("said", BREAKING.values(), ids=BREAKING.keys())
def test_a_film_that_is_not_whole_leaves_no_file(tmp_path: Path, said: bytes) -> None:
    def behave(connection: socket.socket, _: threading.Event) -> None:
        connection.sendall(said)

    with Hostile(behave) as hostile, Client(hostile.url) as client, pytest.raises(ClientError):
        client.decode_video(LATENTS, tmp_path / "film.mp4", model="wan-2.1", deadline_s=20)
    assert not list(tmp_path.iterdir())


class TestCommandLine:
    def test_through_a_server(self, server: str, expected, tmp_path: Path) -> None:
        save_file({"latents": LATENTS}, tmp_path / "latents.safetensors", {"model": "wan-2.1", "space": "vae"})
        film = tmp_path / "film.mp4"
        at = ["--server", server]
        done = hybridge("decode", tmp_path / "latents.safetensors", "-o", film, "--fps", 24, *at)
        assert "9 frames" in done.stdout
        assert_is_film(film.read_bytes(), expected)
        hybridge("encode", film, "--model", "wan-2.1", "-o", tmp_path / "again.safetensors", *at)
        assert load_file(tmp_path / "again.safetensors")["latents"].shape == LATENTS.shape

    def test_on_this_machine(self, engine: Engine, expected, tmp_path: Path) -> None:
        save_file({"latents": LATENTS}, tmp_path / "latents.safetensors", {"space": "vae"})
        film, model = tmp_path / "film.webm", f"wan-2.1={engine.spec.source}"
        done = hybridge("decode", tmp_path / "latents.safetensors", "-o", film, "--model", model, "--metadata")
        assert b"sha256:" in film.read_bytes()
        assert "9 frames" in done.stdout
        assert_is_film(film.read_bytes(), expected)
        hybridge("encode", film, "--model", model, "-o", tmp_path / "again.safetensors")
        assert load_file(tmp_path / "again.safetensors")["latents"].shape == LATENTS.shape

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["-o", "film.avi"], ".mp4, .webm"),
            (["-o", "film.png", "--fps", "24"], "-o FILE.mp4"),
            (["-o", "film.mp4", "--fps", "0"], "1 to 240"),
            (["-o", "film.mp4", "--codec", "vp9"], "output_type=webm"),
        ],
    )
    def test_what_cannot_be_asked_for(self, tmp_path: Path, arguments: list[str], said: str) -> None:
        save_file({"latents": LATENTS}, tmp_path / "latents.safetensors")
        done = hybridge("decode", tmp_path / "latents.safetensors", *arguments, check=False)
        assert done.returncode != 0
        assert said in done.stderr
