"""Latents in fewer bits, beside what torch makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hybridge.client import Client
from hybridge.client.precision import Precision, lowered
from hybridge.errors import RequestError
from hybridge.protocol import WireTensor

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_rounding_is_torchs(precision: Precision) -> None:
    from hybridge.protocol.torch import from_torch

    floats = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(1)) * 20
    floats[0, 0, 0, :4] = torch.tensor([0.0, -0.0, 1.00390625, 3.4e-5])
    for laid in (floats, floats.to(memory_format=torch.channels_last)):
        assert lowered(from_torch(laid), precision) == from_torch(laid.to(getattr(torch, precision)))


def test_bfloat16_becomes_float16_and_nothing_changes_what_fits() -> None:
    brain = WireTensor("bfloat16", (1,), b"\x80\x3f")
    assert lowered(brain, "float16").to_numpy().tolist() == [1.0]
    assert lowered(brain, "bfloat16") is brain
    assert np.isnan(lowered(WireTensor.from_numpy(np.float32([np.nan])), "bfloat16").to_numpy()).all()


@pytest.mark.parametrize(
    ("array", "precision", "words"),
    [
        (np.float32([1e6]), "float16", "bfloat16"),
        (np.uint8([1]), "float16", "floats"),
        (np.float32([1]), "int4", "float16 or bfloat16"),
    ],
)
def test_what_cannot_be_quantised(array: Any, precision: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        lowered(WireTensor.from_numpy(array), precision)


def test_only_on_request(stub: Any) -> None:
    latents = np.ones((1, 4, 4, 6), np.float32)
    with Client("http://h", transport=stub.transport) as client:
        client.decode(latents, output="pixels")
        client.decode(latents, output="pixels", quantize="float16")
    assert [seen.request.latents.dtype for seen in stub.seen] == ["float32", "float16"]
    assert len(stub.seen[1].body) == len(stub.seen[0].body) // 2
