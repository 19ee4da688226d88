"""Every autoencoder class behind one server: what goes through the wire is what its own pipeline computes here."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
import torch
from diffusers.utils.remote_utils import remote_decode
from diffusers.video_processor import VideoProcessor
from safetensors.torch import save
from vae_classes.rows import ROWS, SIDE, Row

from hybridge.client import Client
from hybridge.engine import Engine, EngineOptions, frames_of, resolve, to_pixels
from hybridge.errors import ModelUnavailable, RequestError, Stopped, TooLarge
from hybridge.models import VAE_CLASSES
from hybridge.protocol import HttpResponse, TensorAnswer, read_answer
from hybridge.protocol.torch import to_torch
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

#: Some of the classes whose frames are all final at the end.
LATE = ("hunyuan-video", "sana")
DELIVERED = [row for row in ROWS if row.chunks > 1 or row.name in LATE]

each_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS], scope="class")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    """An engine for each row, loaded from a folder in the hub's layout, that gives diffusers' own bits."""
    root = tmp_path_factory.mktemp("models")
    loaded = {}
    for row in ROWS:
        row.make().save_pretrained(root / row.name)
        spec = resolve(f"{row.name}={root / row.name}")
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
    assert torch.equal(found, expected), f"{row.name}: {(found - expected).abs().max()}"


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


def test_a_batch_by_a_class_that_takes_none(server: str) -> None:
    """The class's own code fails on two items, as Allegro's does: they run one after the other."""
    name = "hunyuan-video-1.5"
    row = next(row for row in ROWS if row.name == name)
    pair = numbers(2, *row.latents[1:])
    both, first = (
        tensor_of(post(f"{server}/v1/{name}/decode", latents, output_type="pt", do_scaling=True))
        for latents in (pair, pair[:1])
    )
    assert both.shape[0] == 2
    assert torch.equal(both[:1], first)
    pixels = numbers(2, *row.pixels[1:]).clamp(-1, 1)
    assert tensor_of(post(f"{server}/v1/{name}/encode", pixels)).shape[0] == 2


@pytest.mark.parametrize("name", ["qwen-image", "hunyuan-image-refiner", "sana", "wan-2.1"])
def test_several_pictures_at_once_by_the_client(server: str, name: str) -> None:
    pixels = numbers(2, 3, SIDE, SIDE).clamp(-1, 1)
    with Client(server) as client:
        if name == "wan-2.1":  # to which they are the frames of one video
            pixels = pixels[:, :, None]
        both = client.encode(pixels, model=name, value_range="signed")
        first = client.encode(pixels[:1], model=name, value_range="signed")
    assert both.shape == (2, *first.shape[1:])
    assert torch.allclose(both[:1], first, atol=1e-5)


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

    @pytest.mark.parametrize(
        "row", [row for row in ROWS if row.chunks > 1 or row.name in LATE], ids=lambda row: row.name
    )
    def test_each_chunk_is_delivered_and_the_film_is_not_kept(self, engines: dict[str, Engine], row: Row) -> None:
        engine, latents = engines[row.name], numbers(*row.latents)
        chunks: list[torch.Tensor] = []
        assert engine.decode(latents, on_frames=chunks.append) is None
        # What comes at once is converted in parts, whose floats take several times their bytes.
        assert len(chunks) == max(row.chunks, -(-sum(map(len, chunks)) // 16))
        assert torch.equal(torch.cat(chunks), to_pixels(frames_of(engine.decode(latents))))

    def test_a_call_ends_between_chunks(self, engines: dict[str, Engine]) -> None:
        seen: list[tuple[int, int]] = []
        with pytest.raises(Stopped, match="5 of 9 frames"):
            engines["wan-2.1"].decode(
                numbers(1, 16, 3, 4, 4), progress=lambda *at: seen.append(at), should_stop=lambda: len(seen) == 2
            )
        assert seen == [(1, 9), (5, 9)]

    def test_a_batch_is_refused(self, engines: dict[str, Engine]) -> None:
        with pytest.raises(RequestError, match="one item"):
            engines["wan-2.1"].decode(numbers(2, 16, 1, 4, 4), on_frames=lambda _: None)


class TestBadInput:
    def test_frames_that_diffusers_drops_are_named(self, server: str) -> None:
        response = post(f"{server}/v1/wan-2.1/encode", numbers(1, 3, 8, 32, 32).clamp(-1, 1))
        assert response.headers["shape"] == "[1, 16, 2, 4, 4]"
        assert "the last 3 of 8 frames were left out" in response.headers["hybridge-warning"]

    @pytest.mark.parametrize(
        ("name", "frames", "said"),
        [
            ("ltx-video", 10, "9 frames or 17 frames"),
            ("mochi", 6, "1 frames or 7 frames"),
            ("cogvideox-2b", 5, "1 frames or 8"),
        ],
    )
    def test_frames_that_a_model_cannot_have(self, server: str, name: str, frames: int, said: str) -> None:
        response = post(f"{server}/v1/{name}/encode", numbers(1, 3, frames, 32, 32).clamp(-1, 1))
        assert response.status_code == 400
        assert said in response.json()["error"]

    def test_several_frames_for_a_model_of_pictures(self, server: str) -> None:
        response = post(f"{server}/v1/qwen-image/decode", numbers(1, 16, 2, 4, 4), output_type="pt")
        assert response.status_code == 400
        assert "qwen-image decodes pictures" in response.json()["error"]

    def test_a_class_that_diffusers_lacks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        later = replace(VAE_CLASSES["AutoencoderKLWan"], name="AutoencoderKLOfTomorrow")
        monkeypatch.setitem(VAE_CLASSES, later.name, later)
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": later.name}))
        (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(save({"weight": torch.zeros(1)}))
        with pytest.raises(ModelUnavailable, match=r"diffusers \d.* without AutoencoderKLOfTomorrow"):
            Engine.load(resolve(f"mine={tmp_path}"), EngineOptions(device="cpu"))

    @pytest.mark.parametrize(
        ("path", "shape"),
        [
            ("ltx-2/decode", (1, 8, 1, 3, 1)),
            ("kvae/encode", (1, 3, 8, 8)),
            ("allegro/decode", (1, 4, 1, 5, 9)),
        ],
    )
    def test_a_size_that_the_layers_do_not_take(self, server: str, path: str, shape: tuple[int, ...]) -> None:
        query = {"output_type": "pt"} if path.endswith("decode") else {}
        response = post(f"{server}/v1/{path}", numbers(*shape).clamp(-1, 1), **query)
        assert response.status_code == 400
        assert "do not" in response.json()["error"]
        assert "a larger picture" in response.json()["error"]

    def test_latents_of_odd_sides_where_four_are_normalised_together(self, server: str) -> None:
        """They were a 500, after the encoder had run."""
        asked = {
            "decode": (numbers(1, 32, 9, 8), {"output_type": "pt"}),
            "encode": (numbers(1, 3, 72, 64).clamp(-1, 1), {}),
        }
        for task, (tensor, query) in asked.items():
            scaled = post(f"{server}/v1/flux2/{task}", tensor, do_scaling=True, **query)
            assert scaled.status_code == 400
            assert "saw 9×8 latents, expected multiples of 2" in scaled.json()["error"]
            assert post(f"{server}/v1/flux2/{task}", tensor, **query).status_code == 200

    def test_channels_of_another_model(self, server: str) -> None:
        response = post(f"{server}/v1/wan-2.1/decode", numbers(1, 48, 1, 4, 4), output_type="pt")
        assert response.status_code == 400
        assert "48 latent channels" in response.json()["error"]

    def test_memory_is_planned_before_it_is_taken(self, engines: dict[str, Engine]) -> None:
        engine = engines["wan-2.1"]
        plan = engine.plan("decode", 1, 32, 32, 9)
        assert plan.mode == "whole"
        assert plan.flops > 0
        with pytest.raises(TooLarge) as refusal:
            engine.decode(numbers(1, 16, 3, 4, 4), budget_bytes=plan.peak_bytes - 1)
        assert refusal.value.least_bytes == plan.peak_bytes


class TestExactness:
    """HunyuanVideo's own call blends tiles of frames; all at once is something else, and the reply says which."""

    latents = numbers(1, 16, 6, 4, 4)

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, engines: dict[str, Engine]) -> Engine:
        """The same weights as in ``engines``, computed all at once."""
        return Engine.load(engines["hunyuan-video"].spec, EngineOptions(device="cpu"))

    @torch.inference_mode()
    def at_once(self, vae: Any) -> torch.Tensor:
        vae.use_framewise_decoding = False
        try:
            return vae.decode(self.latents, return_dict=False)[0]
        finally:
            vae.use_framewise_decoding = True

    def test_rounding_is_all_at_once(self, engine: Engine, engines: dict[str, Engine]) -> None:
        expected = self.at_once(engines["hunyuan-video"].module)
        assert torch.equal(engine.decode(self.latents), expected)
        assert engine.module.use_framewise_decoding  # the module itself is as it was
        assert not torch.equal(engines["hunyuan-video"].decode(self.latents), expected)

    def test_the_reply_says_which(self, engine: Engine, server: str) -> None:
        said = post(f"{server}/v1/hunyuan-video/decode", self.latents, output_type="pt").headers["hybridge-plan"]
        assert "exactness=bitwise, the class's own call" in said
        assert engine.exactness_told().startswith("rounding, all at once: the class's own call blends")
        assert "exactness" not in post(f"{server}/v1/sana/decode", numbers(1, 8, 4, 4)).headers["hybridge-plan"]

    def test_frames_in_chunks_are_those_of_diffusers(self, server: str, engines: dict[str, Engine]) -> None:
        latents, vae = numbers(1, 3, 4, 4, 4), engines["svd"].module
        with torch.inference_mode():
            parts = [vae.decode(part, num_frames=len(part)).sample for part in latents[0].split(2)]
        response = post(f"{server}/v1/svd/decode", latents, output_type="pt", decode_chunk_size=2)
        assert torch.equal(tensor_of(response), torch.cat(parts).transpose(0, 1)[None])


class TestLtx2:
    def test_latents_of_sound_are_refused_by_name(self, server: str) -> None:
        response = post(f"{server}/v1/ltx-2/decode", numbers(1, 4, 16, 16), output_type="pt")
        assert response.status_code == 400
        assert "latents of sound" in response.json()["error"]
