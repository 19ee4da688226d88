"""The body with latents, a picture and a mask: what is read of it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from hybridge.errors import RequestError, UnsupportedMedia
from hybridge.protocol import (
    SAFETENSORS,
    DecodeRequest,
    HttpRequest,
    Scaling,
    WireTensor,
    read_request,
    write_request,
)

LATENTS = np.linspace(-1, 1, 16, dtype="f4").reshape(1, 4, 2, 2)
IMAGE = np.arange(768, dtype="u1").reshape(1, 3, 16, 16)
MASK = (np.arange(256) % 2).astype("f2").reshape(1, 1, 16, 16)
TENSORS = {"latents": LATENTS, "image": IMAGE, "mask": MASK}
HEADERS = {"content-type": SAFETENSORS, "accept": "tensor/binary"}


def request(**fields: Any) -> DecodeRequest:
    tensors = {name: WireTensor.from_numpy(array) for name, array in TENSORS.items()}
    return replace(DecodeRequest(**tensors, scaling=Scaling("model"), output="signed"), **fields)


@pytest.mark.parametrize("task", ["decode", None])
def test_what_another_program_writes_is_read(task: Any) -> None:
    body = save(TENSORS)  # the library of the format itself
    assert read_request("do_scaling=True&output_type=pt", HEADERS, body, task) == request()


def test_latents_alone_may_come_so_too() -> None:
    found = read_request("", HEADERS, save({"latents": LATENTS}), "decode")
    assert isinstance(found, DecodeRequest)
    assert (found.latents, found.image, found.mask) == (WireTensor.from_numpy(LATENTS), None, None)


def test_memory_layouts_are_kept() -> None:
    sent = request(image=WireTensor("uint8", IMAGE.shape, IMAGE.tobytes(), channels_last=True))
    message = write_request(sent)
    assert b'"channels_last":"[\\"image\\"]"' in message.body
    assert read_request(message.query, message.headers, message.body, "decode") == sent
    assert "shape" not in message.query


def test_latents_without_a_picture_are_sent_as_ever() -> None:
    message = write_request(request(image=None, mask=None))
    assert message == HttpRequest(message.query, {**HEADERS, "content-type": "tensor/binary"}, LATENTS.tobytes())


def refused(body: bytes, query: str = "", task: Any = "decode", kind: type[RequestError] = RequestError) -> str:
    with pytest.raises(kind) as error:
        read_request(query, HEADERS, body, task)
    return str(error.value)


def test_what_is_refused() -> None:
    whole = save(TENSORS)
    assert "cannot be read as safetensors" in refused(whole[:-1])
    assert "cannot be read as safetensors" in refused(b"")
    assert "cannot be read as safetensors" in refused(b"\xff" * 8 + whole[8:])
    assert "saw latent_tensor" in refused(save({"latent_tensor": LATENTS}))
    assert "expected latents, image, mask" in refused(save({**TENSORS, "masks": MASK}))
    assert "saw image alone" in refused(save({"latents": LATENTS, "image": IMAGE}))
    assert "saw mask alone" in refused(save({"latents": LATENTS, "mask": MASK}))
    assert "unknown dtype: saw 'int64'" in refused(save({**TENSORS, "mask": MASK.astype("i8")}))
    assert "shape in the query" in refused(whole, "shape=1,4,2,2")
    assert "channels_last in the safetensors metadata" in refused(save(TENSORS, {"channels_last": '["picture"]'}))
    assert "channels_last in the safetensors metadata" in refused(save(TENSORS, {"channels_last": "{"}))
    assert "only [batch, channels, height, width]" in refused(
        save({**TENSORS, "mask": MASK[0]}, {"channels_last": json.dumps(["mask"])})
    )
    assert "is decoded" in refused(whole, task="encode", kind=UnsupportedMedia)


def test_a_shape_that_is_not_there_takes_no_memory() -> None:
    header = json.dumps({"latents": {"dtype": "F32", "shape": [2**40, 4], "data_offsets": [0, 2**44]}}).encode()
    assert "cut short in `latents`" in refused(len(header).to_bytes(8, "little") + header)
