"""Every form that clients send → exactly one request, and back."""

from __future__ import annotations

import base64
import itertools
import json
import math

import numpy as np
import pytest

from hybridge.errors import RequestError, UnsupportedMedia
from hybridge.protocol import (
    DecodeRequest,
    EncodeRequest,
    HttpRequest,
    PictureFile,
    Request,
    Scaling,
    Task,
    VideoFile,
    VideoOptions,
    WireTensor,
    is_raw_tensor,
    read_request,
    sniff_picture,
    write_request,
)

PNG = b"\x89PNG\r\n\x1a\n and so on"
JPEG = b"\xff\xd8\xff\xe0 and so on"
WEBP = b"RIFF\x10\x00\x00\x00WEBPVP8L"
LATENTS = {"content-type": "tensor/binary"}
SHAPE = "shape=1&shape=1&shape=1&shape=2&dtype=uint8"
SD_SCALING = Scaling("given", 0.18215, None)
FLUX_SCALING = Scaling("given", 0.3611, 0.1159)
MODEL = Scaling("model", None, None)
NONE = Scaling("none", None, None)


# ------------------------------------------------------------------------------------ content and its type


@pytest.mark.parametrize(
    "content_type",
    ["", "tensor/binary", "Tensor/Binary; x=1", "application/octet-stream", "application/x-www-form-urlencoded"],
)
def test_a_shape_means_a_tensor(content_type: str) -> None:
    request = read_request(SHAPE, {"content-type": content_type}, b"ab", "decode")
    assert request == DecodeRequest(WireTensor("uint8", (1, 1, 1, 2), b"ab"))


def test_a_tensor_that_looks_like_a_picture_is_a_tensor() -> None:
    body = PNG.ljust(24, b".")
    request = read_request("shape=1&shape=3&shape=2&shape=4&dtype=uint8", {}, body, "encode")
    assert request == EncodeRequest(WireTensor("uint8", (1, 3, 2, 4), body))


@pytest.mark.parametrize("content_type", ["", "image/png", "application/octet-stream", "image/bmp"])
@pytest.mark.parametrize("body", [PNG, JPEG, WEBP])
def test_a_picture_is_known_by_its_first_bytes(content_type: str, body: bytes) -> None:
    for task in ("encode", None):
        assert read_request("", {"content-type": content_type}, body, task) == EncodeRequest(PictureFile(body))


def test_a_picture_in_json() -> None:
    body = json.dumps({"inputs": base64.b64encode(JPEG).decode()}).encode()
    for task in ("encode", None):
        assert read_request("seed=3&sample=true", {"content-type": "application/json"}, body, task) == (
            EncodeRequest(PictureFile(JPEG), sample=True, seed=3)
        )


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (PNG, "image/png"),
        (JPEG, "image/jpeg"),
        (WEBP, "image/webp"),
        (b"GIF89a", None),
        (b"RIFF\x10\x00\x00\x00WAVE", None),
        (b"\x89PNG", None),
        (b"", None),
    ],
)
def test_sniffing(data: bytes, media_type: str | None) -> None:
    assert sniff_picture(data) == media_type


@pytest.mark.parametrize(
    ("content_type", "is_raw"),
    [
        ("tensor/binary", True),
        (" Tensor/Binary ; charset=utf-8", True),
        ("tensor/base64", False),
        ("application/octet-stream", False),
        ("", False),
    ],
)
def test_a_type_that_needs_no_look_at_the_body(content_type: str, is_raw: bool) -> None:
    assert is_raw_tensor(content_type) is is_raw


@pytest.mark.parametrize("body", [b"", b"II*\0....", b"shape=1"])
def test_what_is_neither_tensor_nor_picture(body: bytes) -> None:
    for task in ("encode", "decode", None):
        with pytest.raises(UnsupportedMedia, match="neither a picture nor a tensor"):
            read_request("", {}, body, task)


def test_a_picture_at_the_decode_address() -> None:
    with pytest.raises(UnsupportedMedia, match="Try: the encode endpoint"):
        read_request("", {}, PNG, "decode")


@pytest.mark.parametrize(
    ("query", "saw"),
    [
        ("", "shape missing, dtype missing"),
        ("dtype=uint8", "shape missing, dtype uint8"),
        ("shape=1&shape=2", r"shape \[1, 2\], dtype missing"),
    ],
)
def test_a_tensor_needs_shape_and_dtype(query: str, saw: str) -> None:
    for task in ("encode", "decode"):
        with pytest.raises(RequestError, match=saw):
            read_request(query, LATENTS, b"ab", task)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"\xff\xfe\x00", "the body is not JSON"),
        (b"[" * 60_000, "the body is not JSON"),
        (b"[" * 100_000, "the JSON body is too large beside `inputs`"),
        (b"9" * 10_000, "the body is not JSON"),
        (b"[]", "the JSON body has another form"),
        (b'"text"', "the JSON body has another form"),
        (b"{}", "the JSON body has another form"),
        (b'{"inputs": 5}', "the JSON body has another form"),
        (b'{"inputs": "YWI=", "parameters": [1]}', "the JSON body has another form"),
        (b'{"inputs": "YWIxY"}', "`inputs` is not base64"),
        (b'{"inputs": "YW=I"}', "`inputs` is not base64"),
        ('{"inputs": "ü"}'.encode(), "`inputs` is not base64"),
        (b'{"inputs": "YWI=", "parameters": {"shape": [1, 2]}}', "a tensor needs its shape and its dtype"),
        (b'{"inputs": "YWI=", "parameters": {"shape": [1, 3], "dtype": "uint8"}}', "does not fit its shape"),
        (b'{"inputs": "YWI=", "parameters": {"shape": 2, "dtype": ["uint8", "uint8"]}}', "sent 2 times"),
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "tensor/base64; charset=utf-8"])
def test_json_that_is_not_a_request(content_type: str, body: bytes, what: str) -> None:
    with pytest.raises(RequestError, match=what):
        read_request("", {"content-type": content_type}, body, "decode")


def test_query_and_json_together_must_not_contradict() -> None:
    body = b'{"inputs": "YWI=", "parameters": {"shape": [2], "dtype": "uint8"}}'
    json_type = {"content-type": "application/json"}
    assert read_request("quality=7", json_type, body, "decode") == DecodeRequest(
        WireTensor("uint8", (2,), b"ab"), Scaling("model"), quality=7
    )
    with pytest.raises(RequestError, match="dtype was sent 2 times"):
        read_request("dtype=uint8", json_type, body, "decode")


def test_too_many_fields() -> None:
    with pytest.raises(RequestError, match="the query string cannot be read"):
        read_request("&".join(["shape=1"] * 65), LATENTS, b"", "decode")


@pytest.mark.parametrize(
    ("task", "name"),
    [("decode", "sample"), ("decode", "value_range"), ("encode", "height"), ("encode", "output_type")],
)
def test_a_parameter_of_the_other_task_is_unknown(task: Task, name: str) -> None:
    with pytest.raises(RequestError, match=f"unknown parameter: saw '{name}'"):
        read_request(f"{SHAPE}&{name}=1", LATENTS, b"ab", task)


@pytest.mark.parametrize(
    ("query", "value_range", "sample", "seed"),
    [
        ("", "auto", False, None),
        ("value_range=unit", "unit", False, None),
        ("value_range=Signed&sample=false", "signed", False, None),
        ("sample=True&seed=0", "auto", True, 0),
        (f"sample=1&seed={2**63 - 1}", "auto", True, 2**63 - 1),
    ],
)
def test_extensions_of_encode(query: str, value_range: str, sample: bool, seed: int | None) -> None:
    request = read_request(query, {}, PNG, "encode")
    assert request == EncodeRequest(PictureFile(PNG), value_range=value_range, sample=sample, seed=seed)  # type: ignore[arg-type]


def test_moments() -> None:
    request = EncodeRequest(PictureFile(PNG), moments=True)
    assert read_request("moments=True", {}, PNG, "encode") == request
    assert read_request("moments=False", {}, PNG, "encode") == EncodeRequest(PictureFile(PNG))
    assert write_request(request).query == "do_scaling=False&moments=True"


@pytest.mark.parametrize("more", ["scaling_factor=0.5", "do_scaling=True", "sample=True", "seed=1"])
def test_moments_are_neither_scaled_nor_drawn_from(more: str) -> None:
    with pytest.raises(RequestError, match="moments are the posterior itself"):
        read_request(f"moments=True&{more}", {}, PNG, "encode")


def test_a_memory_layout_is_said_where_it_is_not_the_usual_one() -> None:
    shape, data = (1, 4, 2, 3), bytes(range(48))
    usual = write_request(DecodeRequest(WireTensor("float16", shape, data))).query
    assert "channels_last" not in usual
    latents = WireTensor("float16", shape, data, channels_last=True)
    written = write_request(DecodeRequest(latents))
    assert "&channels_last=True&" in written.query
    assert written.body == data
    assert read_request(written.query, written.headers, written.body) == DecodeRequest(latents)


def test_only_pictures_are_channels_last() -> None:
    with pytest.raises(RequestError, match="can be channels_last: saw 1 axes"):
        read_request("shape=2&dtype=uint8&channels_last=True", LATENTS, b"ab", "decode")


# ------------------------------------------------------------------------------------------ inferring


@pytest.mark.parametrize(
    ("shape", "dtype", "extra", "kind"),
    [
        ((1, 3, 8, 8), "float16", "", EncodeRequest),
        ((3, 8, 8), "uint8", "", EncodeRequest),
        ((1, 8, 8, 3), "uint8", "", EncodeRequest),
        ((1, 8, 8, 3), "float16", "", DecodeRequest),  # not how a VAE takes floats
        ((1, 4, 8, 8), "float16", "", DecodeRequest),
        ((1, 16, 2, 3, 3), "float16", "", DecodeRequest),
        ((1, 16, 64), "float16", "", DecodeRequest),
        # Three packed latents look like one picture; only decoding has these parameters.
        ((3, 16, 64), "float16", "height=64&width=64", DecodeRequest),
        ((3, 16, 64), "float16", "output_type=pt", DecodeRequest),
    ],
)
def test_inferred_task(shape: tuple[int, ...], dtype: str, extra: str, kind: type[Request]) -> None:
    query = "&".join([*(f"shape={side}" for side in shape), f"dtype={dtype}", extra])
    body = bytes(math.prod(shape) * (1 if dtype == "uint8" else 2))
    assert isinstance(read_request(query, LATENTS, body), kind)


# ------------------------------------------------------------------------------------------- writing


def test_a_decode_request_on_the_wire() -> None:
    request = DecodeRequest(WireTensor("bfloat16", (1, 2, 64), bytes(256)), FLUX_SCALING, height=16, width=32)
    assert write_request(request) == HttpRequest(
        "shape=1&shape=2&shape=64&dtype=bfloat16&scaling_factor=0.3611&shift_factor=0.1159&height=16&width=32"
        "&output_type=pil&image_format=jpg&partial_postprocess=False",
        {"content-type": "tensor/binary", "accept": "image/jpeg"},
        bytes(256),
    )


def test_an_encode_request_on_the_wire() -> None:
    request = EncodeRequest(PictureFile(WEBP), Scaling("model"), "unit", True, 7, "base64")
    assert write_request(request) == HttpRequest(
        "do_scaling=True&value_range=unit&sample=True&seed=7",
        {"content-type": "image/webp", "accept": "tensor/base64"},
        WEBP,
    )


def test_a_file_of_another_kind_is_not_sent() -> None:
    with pytest.raises(RequestError, match="not a picture file"):
        write_request(EncodeRequest(PictureFile(b"GIF89a")))
    with pytest.raises(RequestError, match="not a video file"):
        write_request(EncodeRequest(VideoFile(PNG)))


VIDEOS = {"video/mp4": b"\0\0\0\x18ftypisom", "video/webm": b"\x1aE\xdf\xa3", "image/gif": b"GIF89a"}


@pytest.mark.parametrize(("media_type", "body"), VIDEOS.items())
def test_a_video_is_encoded(media_type: str, body: bytes) -> None:
    """By its first bytes, whatever its type says; a tensor whose bytes look like one is a tensor."""
    request = EncodeRequest(VideoFile(body))
    for task in ("encode", None):
        for content_type in (media_type, "", "application/octet-stream"):
            assert read_request("", {"content-type": content_type}, body, task) == request  # type: ignore[arg-type]
    assert write_request(request).headers["content-type"] == media_type
    tensor = read_request(f"shape={len(body)}&dtype=uint8", {}, body, "encode")
    assert isinstance(tensor, EncodeRequest)
    assert isinstance(tensor.image, WireTensor)
    with pytest.raises(UnsupportedMedia, match="a video cannot be decoded"):
        read_request("", {}, body, "decode")


LATENT = ("shape=1&shape=1&shape=1&shape=1&dtype=uint8", b"a")


@pytest.mark.parametrize(
    ("query", "accept", "expected"),
    [
        ("output_type=mp4", "text/plain", VideoOptions()),
        ("output_type=webm&fps=24", "text/plain", VideoOptions("webm", 24)),
        ("output_type=gif&fps=12.5", "*/*", VideoOptions("gif", 12.5)),
        ("output_type=webp", "", VideoOptions("webp")),
        ("output_type=mp4&codec=h265&pixel_format=yuv444p", "", VideoOptions("mp4", 15, "hevc", "yuv444p")),
        ("", "video/webm", VideoOptions("webm")),
        ("", "image/gif", VideoOptions("gif")),
        ("", "video/mp4", VideoOptions()),
        ("output_type=gif", "video/webm", VideoOptions("gif")),
    ],
)
def test_the_kind_of_video(query: str, accept: str, expected: VideoOptions) -> None:
    read = read_request(f"{LATENT[0]}&{query}", {"accept": accept}, LATENT[1], "decode")
    assert isinstance(read, DecodeRequest)
    assert (read.output, read.video) == ("video", expected)
    written = write_request(read)
    assert read_request(written.query, written.headers, written.body, "decode") == read


@pytest.mark.parametrize("name", ["fps=24", "codec=h264", "pixel_format=yuv420p"])
def test_parameters_of_videos_without_a_video(name: str) -> None:
    with pytest.raises(RequestError, match="output_type=mp4"):
        read_request(f"{LATENT[0]}&output_type=pt&{name}", {}, LATENT[1], "decode")


def test_a_webp_by_its_accept_header_is_a_picture() -> None:
    read = read_request(LATENT[0], {"accept": "image/webp"}, LATENT[1], "decode")
    assert isinstance(read, DecodeRequest)
    assert (read.output, read.picture_format) == ("picture", "webp")


def test_frames_of_three_channels_are_encoded() -> None:
    film = "shape=1&shape=3&shape=2&shape=1&shape=1&dtype=uint8"
    assert isinstance(read_request(film, {}, b"abcdef"), EncodeRequest)
    assert isinstance(read_request(f"{film}&output_type=pt", {}, b"abcdef"), DecodeRequest)


def test_every_combination_reads_back() -> None:
    """Outputs, formats and scalings; an envelope belongs to tensors only."""
    latents = WireTensor("uint8", (1, 1, 1, 2), b"ab")
    outputs = [
        ("picture", "binary"),
        ("video", "binary"),
        *itertools.product(("unit", "signed", "pixels"), ("binary", "base64")),
    ]
    scalings = (NONE, MODEL, Scaling("model", None, -0.5), SD_SCALING, FLUX_SCALING)
    for (output, envelope), picture_format, scaling in itertools.product(
        outputs, ("jpeg", "png", "webp"), scalings
    ):
        request = DecodeRequest(latents, scaling, output, picture_format, 80, envelope, 8, 16)  # type: ignore[arg-type]
        written = write_request(request)
        assert read_request(written.query, written.headers, written.body, "decode") == request


# ------------------------------------------------------------------------------ what people send by mistake


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"BM\0\0", "BMP"),
        (b"II*\0", "TIFF"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"\0\0\0\x1cftypheic", "HEIC"),
        (b"\x93NUMPY\x01\0", "a NumPy file"),
        (b"PK\x03\x04", "torch.save"),
    ],
)
def test_other_files_are_named(body: bytes, name: str) -> None:
    with pytest.raises(UnsupportedMedia, match=f"saw .*{name}.*PNG, JPEG, WebP, MP4, WebM or GIF"):
        read_request("", {}, body, "encode")


@pytest.mark.parametrize("query", ["", "shape=1&shape=4&shape=8&shape=8&dtype=float32"])
def test_a_form_gets_a_hint(query: str) -> None:
    form = b'--x\r\ncontent-disposition: form-data; name="image"\r\n\r\n\x89PNG\r\n--x--\r\n' * 5000
    with pytest.raises(UnsupportedMedia, match="--data-binary"):
        read_request(query, {"content-type": "multipart/form-data; boundary=x"}, form, "encode")


def four_channels(dtype: str, least: float, most: float) -> tuple[str, bytes]:
    values = np.linspace(least, most, 4 * 8 * 8, dtype=np.float32)
    if dtype == "bfloat16":
        return dtype, (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return dtype, values.astype(dtype).tobytes()


@pytest.mark.parametrize("shape", ["1,4,8,8", "4,8,8"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_pixels_with_alpha_are_not_taken_for_latents(dtype: str, shape: str) -> None:
    query = f"shape={shape}&dtype={dtype}"
    pixels = four_channels(dtype, 0, 1)[1]
    with pytest.raises(RequestError, match=rf"picture with alpha.*{dtype}, all numbers within 0 to 1.*/decode"):
        read_request(query, LATENTS, pixels)
    # Who says that it is to be decoded is believed, and so are latents, blank ones among them.
    assert isinstance(read_request(query, LATENTS, pixels, "decode"), DecodeRequest)
    assert isinstance(read_request(f"{query}&output_type=pt", LATENTS, pixels), DecodeRequest)
    for least, most in ((-0.5, 1), (0, 1.5), (-4, 4), (0, 0)):
        assert isinstance(read_request(query, LATENTS, four_channels(dtype, least, most)[1]), DecodeRequest)


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b"\x89PNG\x1a\xce", "Try: curl --data-binary @FILE"),
        (b'{"inputs": "AA=="}', "Try: Content-Type: application/json"),
    ],
)
def test_what_curl_sends_with_d_gets_a_hint(body: bytes, hint: str) -> None:
    """It removes line breaks from a file, and calls JSON a form."""
    with pytest.raises(UnsupportedMedia, match=hint):
        read_request("", {"content-type": "application/x-www-form-urlencoded"}, body, "encode")


def test_pixels_on_a_white_ground_are_not_taken_for_latents() -> None:
    """Whatever the first rows are: all of a tensor is looked at."""
    pixels = np.ones((1, 4, 160, 160), np.float32)
    pixels[:, :3, 150:] = 0.5
    with pytest.raises(RequestError, match="picture with alpha"):
        read_request("shape=1,4,160,160&dtype=float32", LATENTS, pixels.tobytes())


def test_bytes_of_four_channels_are_no_latents() -> None:
    with pytest.raises(RequestError, match="picture with alpha"):
        read_request("shape=1,4,8,8&dtype=uint8", LATENTS, bytes(256))


def test_a_long_accept_header_is_read_in_part() -> None:
    accept = ",".join(["image/x"] * 100_000) + ",image/webp"
    request = read_request("shape=1,4,8,8&dtype=float32", {**LATENTS, "accept": accept}, bytes(1024), "decode")
    assert isinstance(request, DecodeRequest)
    assert request.picture_format == "jpeg"
