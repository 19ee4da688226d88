"""``/v1/guess``: whose latents are these?"""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from latent_samples import pipeline_latents, with_channels

from hybridge.models import CATALOGUE, latent_space
from hybridge.server.http.guess import MOST_ELEMENTS


def guess(server: str, latents: np.ndarray, **query: Any) -> httpx.Response:
    query = {"shape": list(latents.shape), "dtype": latents.dtype.name, **query}
    headers = {"content-type": "tensor/binary"}
    return httpx.post(f"{server}/v1/guess", params=query, content=latents.tobytes(), headers=headers)


@pytest.fixture
def latents() -> np.ndarray:
    return pipeline_latents()["photograph"].astype(np.float32)


def test_the_models_of_this_server_come_first(server, latents) -> None:
    found = guess(server, latents).json()["guesses"]
    assert found[0] == {
        "model": "sd-v1",
        "title": "Stable Diffusion v1 (ft-MSE)",
        "is_served": True,
        "is_scaled": True,
        "rms": pytest.approx(float(np.sqrt((latents**2).mean())), abs=1e-3),
    }
    served = [one["is_served"] for one in found]
    assert served == sorted(served, reverse=True)
    assert {one["model"] for one in found if one["is_served"]} <= {"sd-v1", "sdxl", "taesd"}


@pytest.mark.parametrize(("name", "channels"), [("sdxl", 4), ("flux", 16)])
def test_the_space_is_seen_by_the_statistics(server, latents, name: str, channels: int) -> None:
    raw = latent_space.denormalise(with_channels(latents, channels), CATALOGUE[name].normalisation)
    first = guess(server, raw.astype(np.float32)).json()["guesses"][0]
    assert (first["model"], first["is_served"], first["is_scaled"]) == (name, True, False)


def test_models_elsewhere_are_named_too(server, latents) -> None:
    found = guess(server, np.repeat(with_channels(latents, 16)[:, :, None], 3, axis=2)).json()["guesses"]
    assert found
    assert not any(one["is_served"] for one in found)
    assert "wan-2.1" in {one["model"] for one in found}


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 0.0])
def test_what_no_model_has_is_nobodys(server, value: float) -> None:
    answer = guess(server, np.full((1, 4, 8, 8), value, np.float32))
    assert (answer.status_code, answer.json()) == (200, {"guesses": []})


def test_wrong_requests_are_refused(server, latents) -> None:
    side = 1 + int((MOST_ELEMENTS / 4) ** 0.5)
    assert guess(server, np.zeros((1, 4, side, side), np.float16)).status_code == 413
    assert guess(server, latents, shape=[1, 4, 1, 1]).json()["cause"] == "wrong-length"
    assert guess(server, latents, dtype="int4").status_code == 400
    assert guess(server, latents, colour="red").json()["code"] == "UnknownParameter"
    picture = b"\x89PNG\r\n\x1a\n" + bytes(64)
    assert (
        httpx.post(f"{server}/v1/guess", content=picture, headers={"content-type": "image/png"}).status_code == 415
    )
    assert httpx.get(f"{server}/v1/guess").status_code == 405
