"""What the doctor finds reaches the sender: refusals by their cause, warnings in headers."""

from __future__ import annotations

import io

import httpx
import numpy as np
import pytest
from latent_samples import pipeline_latents, with_channels
from PIL import Image

from hybridge import Client
from hybridge.client import ServerWarning
from hybridge.errors import ServerRefused

QUERY = "shape=1,4,24,24&dtype=float32"
NATIVE = "scaling_factor=0.18215"


def post(server: str, query: str, body: bytes, task: str = "decode", model: str = "sd-v1") -> httpx.Response:
    content_type = "tensor/binary" if task == "decode" else "image/png"
    address = f"{server}/v1/{model}/{task}?{query}"
    return httpx.post(address, content=body, headers={"content-type": content_type}, timeout=60)


def test_latents_that_are_fine_carry_no_warning(server: str) -> None:
    for name, latents in pipeline_latents().items():
        answer = post(server, f"{QUERY}&{NATIVE}", latents.tobytes())
        assert answer.status_code == 200, name
        assert {"hybridge-warning", "hybridge-findings"}.isdisjoint(answer.headers), name


def test_a_warning_has_a_code_and_a_sentence(server: str) -> None:
    answer = post(server, QUERY, pipeline_latents()["photograph"].tobytes())
    assert answer.headers["hybridge-findings"] == "latents-look-normalised"
    assert "scaling_factor=0.18215" in answer.headers["hybridge-warning"]
    assert "hybridge-findings" in answer.headers["access-control-expose-headers"]


def test_warnings_before_and_after_the_numbers_come_together(server: str) -> None:
    latents = with_channels(pipeline_latents()["photograph"], 16)
    query = "shape=1,16,24,24&dtype=float32&height=200&width=200"
    answer = post(server, query, latents.tobytes(), model="flux")
    assert answer.headers["hybridge-findings"] == "size-cropped, latents-look-normalised"
    assert answer.headers["hybridge-warning"].count("; ") == 1


@pytest.mark.parametrize(
    ("query", "latents", "cause"),
    [
        (f"shape=1,16,24,24&dtype=float32&{NATIVE}", with_channels, "latents-of-another-model"),
        (f"{QUERY}&{NATIVE}", lambda z, _: z.astype(">f4"), "wrong-byte-order"),
        (f"{QUERY}&{NATIVE}", lambda z, _: np.where(z > 1, np.nan, z).astype("f4"), "not-finite"),
        (f"{QUERY}&{NATIVE}", lambda z, _: z[:, :2].copy(), "wrong-length"),
    ],
)
def test_a_refusal_names_its_cause(server: str, query: str, latents, cause: str) -> None:
    answer = post(server, query, latents(pipeline_latents()["photograph"], 16).tobytes())
    assert answer.status_code == 400
    assert answer.json()["cause"] == cause


def test_a_resized_picture_is_said_in_a_header(server: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (30, 17), "red").save(file, "PNG")
    answer = post(server, "", file.getvalue(), "encode")
    assert answer.headers["hybridge-findings"] == "picture-resized"


def test_a_range_that_resizing_may_have_left_is_said_in_a_header(server: str) -> None:
    """Bicubic resizing of [0, 1] gives some numbers below 0, which by diffusers' rule mean [-1, 1]."""
    pixels = np.linspace(0, 1, 3 * 24 * 24, dtype="f4").reshape(1, 3, 24, 24)
    for low, value_range, found in (
        (-0.02, "auto", True),
        (0, "auto", False),
        (-1, "auto", False),
        (-0.02, "unit", False),
    ):
        pixels[0, 0, 0, 0] = low
        query = {"shape": "1,3,24,24", "dtype": "float32", "value_range": value_range}
        answer = httpx.post(
            f"{server}/v1/sd-v1/encode",
            params=query,
            content=pixels.tobytes(),
            headers={"content-type": "tensor/binary"},
        )
        assert answer.status_code == 200
        assert (answer.headers.get("hybridge-findings") == "uncertain-range") is found


def test_the_client_passes_causes_and_warnings_on(server: str) -> None:
    with Client(server) as client:
        with pytest.raises(ServerRefused) as refused:
            client.decode(with_channels(pipeline_latents()["sky"], 16), model="sd-v1")
        assert refused.value.cause == "latents-of-another-model"
        with pytest.warns(ServerWarning, match="look like a pipeline's"):
            client.decode(pipeline_latents()["sky"], model="sd-v1", do_scaling=False)
