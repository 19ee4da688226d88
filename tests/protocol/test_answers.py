"""Answers on the wire, and diffusers' own client reading them."""

from __future__ import annotations

import base64
import io
import json
import struct

import numpy as np
import pytest
import requests
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.remote_utils import postprocess_decode, postprocess_encode
from diffusers.video_processor import VideoProcessor
from PIL import Image

from hybridge.errors import BadAnswer
from hybridge.protocol import (
    EXPOSED_HEADERS,
    FileAnswer,
    HttpResponse,
    TensorAnswer,
    WireTensor,
    read_answer,
    write_answer,
)
from hybridge.protocol.media import write_picture
from hybridge.protocol.torch import from_torch

TENSOR = WireTensor("float16", (1, 3, 1, 2), struct.pack("<6e", 1, 2, 3, 4, 5, -6))


def test_a_binary_tensor_on_the_wire() -> None:
    assert write_answer(TensorAnswer(TENSOR)) == HttpResponse(
        200,
        {"content-type": "tensor/binary", "shape": "[1, 3, 1, 2]", "dtype": "float16"},
        struct.pack("<6e", 1, 2, 3, 4, 5, -6),
    )


def test_a_base64_tensor_on_the_wire() -> None:
    response = write_answer(TensorAnswer(TENSOR, "base64"))
    assert response.status == 200
    assert response.headers == {"content-type": "tensor/base64", "shape": "[1, 3, 1, 2]", "dtype": "float16"}
    assert json.loads(response.body) == {
        "inputs": base64.b64encode(TENSOR.data).decode(),
        "parameters": {"shape": [1, 3, 1, 2], "dtype": "float16"},
    }


@pytest.mark.parametrize("envelope", ["binary", "base64"])
def test_a_channels_last_tensor_says_so_in_a_header(envelope: str) -> None:
    answer = TensorAnswer(WireTensor(TENSOR.dtype, TENSOR.shape, TENSOR.data, channels_last=True), envelope)  # type: ignore[arg-type]
    response = write_answer(answer)
    assert response.headers["channels-last"] == "True"
    assert response.body == write_answer(TensorAnswer(TENSOR, envelope)).body  # type: ignore[arg-type]
    assert read_answer(response) == answer


def test_a_file_on_the_wire() -> None:
    assert write_answer(FileAnswer(b"...", "image/png")) == HttpResponse(200, {"content-type": "image/png"}, b"...")


def test_browsers_may_see_what_describes_the_tensor() -> None:
    assert EXPOSED_HEADERS[:2] == ("shape", "dtype")
    assert all(name == name.lower() for name in EXPOSED_HEADERS)


@pytest.mark.parametrize("data", [bytes(4), bytearray(4), memoryview(bytes(4))])
@pytest.mark.parametrize("envelope", ["binary", "base64"])
def test_body_is_bytes_whatever_buffer_the_tensor_has(data: bytes, envelope: str) -> None:
    body = write_answer(TensorAnswer(WireTensor("uint8", (4,), data), envelope)).body  # type: ignore[arg-type]
    assert type(body) is bytes


@pytest.mark.parametrize(
    "answer",
    [
        TensorAnswer(TENSOR, "binary"),
        TensorAnswer(TENSOR, "base64"),
        TensorAnswer(WireTensor("bfloat16", (5,), bytes(range(10))), "base64"),
        TensorAnswer(WireTensor("uint8", (1, 1, 1, 1, 3), b"abc")),
        FileAnswer(b"\xff\xd8", "image/jpeg"),
        FileAnswer(b"RIFF", "image/webp"),
        FileAnswer(b"ftyp", "video/mp4"),
    ],
)
def test_round_trip(answer: TensorAnswer | FileAnswer) -> None:
    assert read_answer(write_answer(answer)) == answer


BINARY = {"content-type": "tensor/binary", "shape": "[2]", "dtype": "uint8"}


def test_header_details_that_proxies_change() -> None:
    headers = BINARY | {"content-type": "Tensor/Binary; charset=utf-8", "shape": "[1,2]"}
    assert read_answer(HttpResponse(200, headers, b"ab")) == TensorAnswer(WireTensor("uint8", (1, 2), b"ab"))


@pytest.mark.parametrize(
    ("headers", "body", "what"),
    [
        (BINARY, b"a", "does not fit its own shape: saw 1 bytes, expected 2 bytes"),
        (BINARY, b"", "does not fit its own shape"),
        (BINARY | {"shape": "[]"}, b"", "does not fit its own shape"),
        (BINARY | {"shape": "[1.0, 2.0]"}, b"ab", "does not fit its own shape"),
        (BINARY | {"shape": f"[1{'0' * 400}, 1.5]"}, b"ab", "does not fit its own shape"),
        (BINARY | {"shape": "[NaN]"}, b"ab", "does not fit its own shape"),
        (BINARY | {"shape": '"12"'}, b"ab", "does not fit its own shape"),
        (BINARY | {"shape": "2"}, b"ab", "cannot be read: saw TypeError"),
        (BINARY | {"shape": "2]"}, b"ab", "cannot be read: saw JSONDecodeError"),
        (BINARY | {"shape": "[" * 9999}, b"ab", "cannot be read: saw RecursionError"),
        (BINARY | {"dtype": "float64"}, bytes(16), "does not fit its own shape: saw 'float64'"),
        ({"content-type": "tensor/binary", "dtype": "uint8"}, b"ab", "cannot be read: saw KeyError: 'shape'"),
        ({"content-type": "tensor/binary", "shape": "[2]"}, b"ab", "cannot be read: saw KeyError: 'dtype'"),
        ({"content-type": "tensor/base64"}, b"{", "cannot be read: saw JSONDecodeError"),
        ({"content-type": "tensor/base64"}, b"[]", "cannot be read: saw TypeError"),
        ({"content-type": "tensor/base64"}, b'{"inputs": "YWI="}', "cannot be read: saw KeyError"),
        (
            {"content-type": "tensor/base64"},
            b'{"inputs": "YWI", "parameters": {"shape": [2], "dtype": "uint8"}}',
            "cannot be read: saw Error: Incorrect padding",
        ),
        (
            {"content-type": "tensor/base64"},
            b'{"inputs": "YWI=", "parameters": {"shape": [3], "dtype": "uint8"}}',
            "does not fit its own shape",
        ),
        (
            {"content-type": "tensor/base64"},
            b'{"inputs": "YWI=", "parameters": {"shape": [2], "dtype": ["uint8"]}}',
            "cannot be read: saw TypeError",
        ),
        (
            {"content-type": "text/html"},
            b"<html>",
            "not from a hybridge server: saw text/html, beginning with b'<html>'",
        ),
        ({}, b"", "not from a hybridge server: saw no Content-Type"),
    ],
)
def test_what_is_no_answer(headers: dict[str, str], body: bytes, what: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        read_answer(HttpResponse(200, headers, body))
    assert what in str(caught.value)


# --------------------------------------------------- diffusers reads it, the response matrix row by row


def as_diffusers_sees_it(answer: TensorAnswer | FileAnswer) -> requests.Response:
    written = write_answer(answer)
    response = requests.Response()
    response.status_code = written.status
    response.headers.update(written.headers)
    response._content = written.body
    return response


def gradient(*shape: int) -> torch.Tensor:
    """Steps of 1/255 from 0 to 1, different everywhere within 256 elements."""
    return (torch.arange(torch.Size(shape).numel()) % 256 / 255).reshape(shape)


PIXELS = (gradient(8, 16, 3) * 255).round().to(torch.uint8)  # (H, W, C)


@pytest.mark.parametrize(("picture_format", "name"), [("jpeg", "jpeg"), ("png", "png")])
def test_pil_without_processor(picture_format: str, name: str) -> None:
    answer = write_picture(from_torch(PIXELS[None]), picture_format)  # type: ignore[arg-type]
    image = postprocess_decode(as_diffusers_sees_it(answer))
    assert image.mode == "RGB"
    assert image.size == (16, 8)
    assert image.format == name
    if name == "png":
        assert image.tobytes() == PIXELS.numpy().tobytes()


@pytest.mark.parametrize(("processor", "count"), [(VaeImageProcessor(), 2), (VideoProcessor(), 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pil_with_processor(processor: object, count: int, dtype: torch.dtype) -> None:
    unit = gradient(count, 3, 8, 16).to(dtype)
    images = postprocess_decode(as_diffusers_sees_it(TensorAnswer(from_torch(unit))), processor=processor)
    assert [image.size for image in images] == [(16, 8)] * count
    expected = (gradient(count, 3, 8, 16).permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
    assert b"".join(image.tobytes() for image in images) == expected.numpy().tobytes()


def test_pt_with_processor() -> None:
    signed = gradient(2, 3, 8, 16) * 2 - 1
    image = postprocess_decode(
        as_diffusers_sees_it(TensorAnswer(from_torch(signed))), processor=VaeImageProcessor(), output_type="pt"
    )
    expected = (gradient(2, 3, 8, 16)[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
    assert image.tobytes() == expected.numpy().tobytes()


def test_pt_video_with_processor() -> None:
    signed = gradient(1, 3, 5, 8, 16) * 2 - 1
    frames = postprocess_decode(
        as_diffusers_sees_it(TensorAnswer(from_torch(signed))), processor=VideoProcessor(), output_type="pt"
    )
    expected = (gradient(1, 3, 5, 8, 16)[0].permute(1, 2, 3, 0) * 255).round().to(torch.uint8)
    assert len(frames) == 5
    assert b"".join(frame.tobytes() for frame in frames) == expected.numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 3, 8, 16), (1, 3, 5, 8, 16)])
def test_pt_as_a_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    signed = (gradient(*shape) * 2 - 1).to(dtype)
    answer = TensorAnswer(from_torch(signed))
    tensor = postprocess_decode(as_diffusers_sees_it(answer), output_type="pt", return_type="pt")
    assert tensor.dtype is dtype
    assert torch.equal(tensor, signed)


def test_pt_partial() -> None:
    one, many = TensorAnswer(from_torch(PIXELS[None])), TensorAnswer(from_torch(PIXELS.repeat(3, 1, 1, 1)))
    partial = {"output_type": "pt", "partial_postprocess": True}
    image = postprocess_decode(as_diffusers_sees_it(one), **partial)
    assert image.size == (16, 8)
    assert image.tobytes() == PIXELS.numpy().tobytes()
    images = postprocess_decode(as_diffusers_sees_it(many), **partial)
    assert [image.tobytes() for image in images] == [PIXELS.numpy().tobytes()] * 3
    tensor = postprocess_decode(as_diffusers_sees_it(one), return_type="pt", **partial)
    assert torch.equal(tensor, PIXELS[None])


def test_mp4() -> None:
    answer = FileAnswer(b"an mp4", "video/mp4")
    assert postprocess_decode(as_diffusers_sees_it(answer), output_type="mp4", return_type="mp4") == b"an mp4"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_encode(dtype: torch.dtype) -> None:
    latents = gradient(1, 4, 2, 3).to(dtype)
    tensor = postprocess_encode(as_diffusers_sees_it(TensorAnswer(from_torch(latents))))
    assert tensor.dtype is dtype
    assert torch.equal(tensor, latents)


def test_our_own_reader_agrees_with_the_file() -> None:
    answer = write_picture(from_torch(PIXELS[None]), "png")
    back = read_answer(write_answer(answer))
    assert isinstance(back, FileAnswer)
    with Image.open(io.BytesIO(back.data)) as image:
        assert (np.asarray(image) == PIXELS.numpy()).all()


def test_files_without_their_type_are_told_by_their_first_bytes() -> None:
    """The pilot's servers sent MP4 as text/plain, and some proxies drop the type."""
    mp4 = b"\x00\x00\x00\x20ftypisom" + bytes(20)
    assert read_answer(HttpResponse(200, {"content-type": "text/plain; charset=utf-8"}, mp4)) == FileAnswer(
        mp4, "video/mp4"
    )
    png = b"\x89PNG\r\n\x1a\n" + bytes(20)
    assert read_answer(HttpResponse(200, {}, png)) == FileAnswer(png, "image/png")
