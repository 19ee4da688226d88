"""The requests of diffusers' own test of HunyuanVideo's endpoint, sent by its own client and by ours."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import av
import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils.remote_utils import remote_decode
from diffusers.video_processor import VideoProcessor

import hybridge
from hybridge.engine import Engine, EngineOptions, frames_of, to_pixels
from hybridge.models import CATALOGUE
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

#: diffusers' tests/remote: TestRemoteAutoencoderKLHunyuanVideoPacked… have this shape, dtype and factor.
LATENTS = torch.randn(1, 16, 3, 40, 64, generator=torch.Generator().manual_seed(13)).to(torch.float16)
SCALE = 0.476986


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hunyuan-video")
    vae = diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=16,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        mid_block_add_attention=False,
    )
    vae.eval().save_pretrained(folder)
    spec = replace(CATALOGUE["hunyuan-video"], source=str(folder), subfolder=None)
    return Engine.load(spec, EngineOptions(device="cpu", exactness="bitwise"))


@pytest.fixture(scope="module")
def endpoint(engine: Engine) -> Iterator[str]:
    """The address as the pilot's: one model, no path."""
    with running(create_app(LocalBackend({"hunyuan-video": engine}))) as address:
        yield f"{address}/"


@pytest.fixture(scope="module")
def frames(engine: Engine) -> np.ndarray[Any, Any]:
    """The pictures of the pipeline's own decode: uint8 (9, 320, 512, 3)."""
    with torch.inference_mode():
        sample = engine.module.decode((LATENTS / SCALE).to(engine.dtype.value), return_dict=False)[0]
    return to_pixels(frames_of(sample)).numpy()


def assert_frames(pictures: Any, frames: np.ndarray[Any, Any]) -> None:
    assert len(pictures) == 9
    for picture, frame in zip(pictures, frames, strict=True):
        assert picture.size == (512, 320)
        assert np.abs(np.asarray(picture).astype(int) - frame).max() <= 1


def assert_film(data: bytes, frames: np.ndarray[Any, Any]) -> None:
    """Brightness is compared: colours have half of the size in the file, and these pictures are noise."""
    film = film_of(data)
    assert film.shape == frames.shape
    assert np.abs((film.astype(int) - frames) @ [0.2126, 0.7152, 0.0722]).mean() < 6


def film_of(data: bytes) -> np.ndarray[Any, Any]:
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].average_rate == 15
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


class TestRemoteDecode:
    def test_a_tensor(self, endpoint: str, frames) -> None:
        tensor = remote_decode(endpoint, LATENTS, scaling_factor=SCALE, output_type="pt", return_type="pt")
        assert tensor.shape == (1, 3, 9, 320, 512)
        assert np.abs(to_pixels(frames_of(tensor)).numpy().astype(int) - frames).max() <= 1

    def test_a_tensor_through_a_processor(self, endpoint: str, frames) -> None:
        processor = VideoProcessor()
        assert_frames(remote_decode(endpoint, LATENTS, processor, scaling_factor=SCALE, output_type="pt"), frames)

    def test_pixels(self, endpoint: str, frames) -> None:
        pictures = remote_decode(
            endpoint, LATENTS, scaling_factor=SCALE, output_type="pt", partial_postprocess=True
        )
        assert_frames(pictures, frames)

    def test_pictures_with_a_processor(self, endpoint: str, frames) -> None:
        processor = VideoProcessor()
        assert_frames(remote_decode(endpoint, LATENTS, processor, scaling_factor=SCALE, output_type="pil"), frames)

    def test_a_film(self, endpoint: str, frames) -> None:
        data = remote_decode(endpoint, LATENTS, scaling_factor=SCALE, output_type="mp4", return_type="mp4")
        assert_film(data, frames)


def test_pictures_by_our_client(endpoint: str, frames) -> None:
    assert_frames(hybridge.remote_decode(endpoint, LATENTS, VideoProcessor(), scaling_factor=SCALE), frames)


def test_the_documentations_example(endpoint: str, frames) -> None:
    """``output_type="mp4"`` alone, which ends in an UnboundLocalError of diffusers' own client."""
    video = hybridge.remote_decode(endpoint=endpoint, tensor=LATENTS, output_type="mp4")
    assert isinstance(video, bytes)
    assert_film(video, frames)  # the model's own factor is the same
