"""Every autoencoder class behind one server: what goes through the wire is what its own pipeline computes here."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import av
import httpx
import pytest
import torch
from diffusers.utils.remote_utils import remote_decode
from diffusers.video_processor import VideoProcessor
from vae_classes.rows import ROWS, Row

from hybridge.engine import Engine, EngineOptions
from hybridge.models import CATALOGUE
from hybridge.protocol import HttpResponse, TensorAnswer, read_answer
from hybridge.protocol.torch import to_torch
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

each_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS], scope="class")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    """An engine for each row, loaded from a folder in the hub's layout, that gives diffusers' own bits."""
    root = tmp_path_factory.mktemp("models")
    loaded = {}
    for row in ROWS:
        row.make().save_pretrained(root / row.name)
        spec = replace(CATALOGUE[row.name], source=str(root / row.name), subfolder=None)
        loaded[row.name] = Engine.load(spec, EngineOptions(device="cpu", exactness="bitwise"))
    return loaded


@pytest.fixture(scope="module")
def server(engines: dict[str, Engine]) -> Iterator[str]:
    with running(create_app(LocalBackend(engines))) as address:
        yield address


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def post(address: str, tensor: torch.Tensor, **query: Any) -> httpx.Response:
    query = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch."), **query}
    headers = {"content-type": "tensor/binary", "accept": "tensor/binary"}
    body = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return httpx.post(address, content=body, params=query, headers=headers, timeout=60)


def tensor_of(response: httpx.Response) -> torch.Tensor:
    assert response.status_code == 200, response.text
    answer = read_answer(HttpResponse(200, dict(response.headers), response.content))
    assert isinstance(answer, TensorAnswer)
    return to_torch(answer.tensor)


def assert_same(found: torch.Tensor, expected: torch.Tensor, row: Row) -> None:
    assert found.shape == expected.shape
    if row.rtol:
        torch.testing.assert_close(found, expected, rtol=0, atol=row.rtol * float(expected.abs().max()))
    else:
        assert torch.equal(found, expected)


@each_row
class TestThroughTheWire:
    @pytest.fixture(scope="class")
    @classmethod
    def latents(cls, row: Row) -> torch.Tensor:
        return numbers(*row.latents)

    @pytest.fixture(scope="class")
    @classmethod
    def sample(cls, engines: dict[str, Engine], row: Row, latents: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return row.decode(engines[row.name].module, latents)

    def test_decode_gives_what_the_pipeline_decodes(self, server: str, row: Row, latents, sample) -> None:
        response = post(f"{server}/v1/{row.name}/decode", latents, output_type="pt", do_scaling=True, **row.query)
        assert_same(tensor_of(response), sample, row)

    def test_encode_gives_what_the_pipeline_encodes(self, server: str, engines, row: Row) -> None:
        if row.encode is None:
            pytest.skip("it does not encode")
        pixels = numbers(*row.pixels).clamp(-1, 1)
        with torch.inference_mode():
            expected = row.encode(engines[row.name].module, pixels)
        response = post(f"{server}/v1/{row.name}/encode", pixels, do_scaling=True)
        assert_same(tensor_of(response), expected, row)


class TestDiffusersClient:
    """The four answers that diffusers' own client reads of a video model."""

    latents = numbers(1, 16, 3, 4, 4)

    @pytest.fixture(scope="class")
    @classmethod
    def frames(cls, engines: dict[str, Engine]) -> list[Any]:
        with torch.inference_mode():
            sample = engines["wan-2.1"].module.decode(cls.latents, return_dict=False)[0]
        return VideoProcessor().postprocess_video(sample, output_type="pil")[0]

    def remote(self, server: str, **arguments: Any) -> Any:
        return remote_decode(f"{server}/v1/wan-2.1/decode", self.latents, do_scaling=False, **arguments)

    def test_tensor(self, server: str) -> None:
        tensor = self.remote(server, output_type="pt", return_type="pt")
        assert tensor.shape == (1, 3, 9, 32, 32)

    def test_tensor_through_a_processor(self, server: str, frames: list[Any]) -> None:
        assert self.remote(server, output_type="pt", processor=VideoProcessor()) == frames

    def test_pixels(self, server: str, frames: list[Any]) -> None:
        assert self.remote(server, output_type="pt", partial_postprocess=True) == frames

    def test_pictures(self, server: str, frames: list[Any]) -> None:
        assert self.remote(server, processor=VideoProcessor()) == frames

    def test_mp4(self, server: str) -> None:
        with av.open(io.BytesIO(self.remote(server, output_type="mp4", return_type="mp4"))) as video:
            assert [(frame.width, frame.height) for frame in video.decode(video=0)] == [(32, 32)] * 9

    def test_a_picture_file_is_refused(self, server: str) -> None:
        with pytest.raises(RuntimeError, match="one picture file cannot hold a video"):
            self.remote(server)


class TestFrames:
    """Frames as they are made."""

    def test_each_chunk_is_delivered_and_the_film_is_not_kept(self, engines: dict[str, Engine]) -> None:
        engine = engines["wan-2.1"]
        latents, chunks = numbers(1, 16, 3, 4, 4), []
        assert engine.decode(latents, on_frames=chunks.append) is None
        assert [chunk.shape for chunk in chunks] == [(1, 32, 32, 3), (4, 32, 32, 3), (4, 32, 32, 3)]
        from hybridge.engine import frames_of, to_pixels

        assert torch.equal(torch.cat(chunks), to_pixels(frames_of(engine.decode(latents))))

    def test_a_call_ends_between_chunks(self, engines: dict[str, Engine]) -> None:
        from hybridge.errors import Stopped

        seen: list[tuple[int, int]] = []
        with pytest.raises(Stopped, match="5 of 9 frames"):
            engines["wan-2.1"].decode(
                numbers(1, 16, 3, 4, 4), progress=lambda *at: seen.append(at), should_stop=lambda: len(seen) == 2
            )
        assert seen == [(1, 9), (5, 9)]

    def test_a_batch_is_refused(self, engines: dict[str, Engine]) -> None:
        from hybridge.errors import RequestError

        with pytest.raises(RequestError, match="one item"):
            engines["wan-2.1"].decode(numbers(2, 16, 1, 4, 4), on_frames=lambda _: None)


class TestBadInput:
    def test_frames_that_diffusers_drops_are_named(self, server: str) -> None:
        response = post(f"{server}/v1/wan-2.1/encode", numbers(1, 3, 8, 32, 32).clamp(-1, 1))
        assert response.headers["shape"] == "[1, 16, 2, 4, 4]"
        assert "the last 3 of 8 frames were left out" in response.headers["hybridge-warning"]

    def test_channels_of_another_model(self, server: str) -> None:
        response = post(f"{server}/v1/wan-2.1/decode", numbers(1, 48, 1, 4, 4), output_type="pt")
        assert response.status_code == 400
        assert "48 latent channels" in response.json()["error"]

    def test_memory_is_planned_before_it_is_taken(self, engines: dict[str, Engine]) -> None:
        from hybridge.errors import TooLarge

        engine = engines["wan-2.1"]
        plan = engine.plan("decode", 1, 32, 32, 9)
        assert plan.mode == "whole"
        assert plan.flops > 0
        with pytest.raises(TooLarge) as refusal:
            engine.decode(numbers(1, 16, 3, 4, 4), budget_bytes=plan.peak_bytes - 1)
        assert refusal.value.least_bytes == plan.peak_bytes
