"""Every form that clients send → exactly one request, and back."""

from __future__ import annotations

import base64
import itertools
import json
import math
from importlib.metadata import version
from types import ModuleType
from typing import Any

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


def ramp(dtype: str, *shape: int) -> WireTensor:
    """The golden tensors, without torch: element i is (37·i mod 101 - 50) / 16."""
    steps = np.arange(math.prod(shape)) * 37 % 101
    values = ((steps - 50) / 16).astype("<f4")
    data = {
        "float32": values,
        "float16": values.astype("<f2"),
        "bfloat16": (values.view("<u4") >> 16).astype("<u2"),
        "uint8": steps.astype("u1"),
    }[dtype]
    return WireTensor(dtype, shape, data.tobytes())


SD = ramp("float16", 1, 4, 2, 3)
FLUX = ramp("bfloat16", 1, 16, 2, 4)
VIDEO = ramp("float16", 1, 16, 2, 2, 2)
SD_SCALING = Scaling("given", 0.18215, None)
FLUX_SCALING = Scaling("given", 0.3611, 0.1159)
VIDEO_SCALING = Scaling("given", 0.476986, None)
MODEL = Scaling("model", None, None)
NONE = Scaling("none", None, None)
PIXELS = (1, 3, 8, 8)

#: Golden case → what it says.  Pictures stand as None here: the file is the body.
SAID: dict[str, Request | None] = {
    "decode-scaling": DecodeRequest(SD, SD_SCALING, "picture", "jpeg", 95, "binary", None, None),
    "decode-scaling-shift": DecodeRequest(FLUX, FLUX_SCALING, "picture"),
    "decode-no-factor": DecodeRequest(SD, MODEL, "picture"),
    "decode-no-factor-pt": DecodeRequest(VIDEO, MODEL, "signed"),
    "decode-do-scaling-false": DecodeRequest(SD, NONE, "picture"),
    "decode-do-scaling-false-factors": DecodeRequest(ramp("float16", 1, 16, 2, 4), NONE, "picture"),
    "decode-do-scaling-none": DecodeRequest(SD, NONE, "picture"),
    "decode-shift-only": DecodeRequest(SD, Scaling("model", None, 0.1159), "picture"),
    "decode-pil-jpg": DecodeRequest(SD, SD_SCALING, "picture", "jpeg"),
    "decode-pil-png": DecodeRequest(SD, SD_SCALING, "picture", "png"),
    "decode-pil-processor": DecodeRequest(SD, SD_SCALING, "unit"),
    "decode-pil-processor-png": DecodeRequest(SD, SD_SCALING, "unit", "png"),
    "decode-pil-video-processor": DecodeRequest(VIDEO, VIDEO_SCALING, "unit"),
    "decode-pil-return-pt": DecodeRequest(SD, SD_SCALING, "picture"),
    "decode-pt": DecodeRequest(SD, SD_SCALING, "signed"),
    "decode-pt-processor": DecodeRequest(SD, SD_SCALING, "signed"),
    "decode-pt-partial": DecodeRequest(SD, SD_SCALING, "pixels"),
    "decode-pt-partial-return-pt": DecodeRequest(SD, SD_SCALING, "pixels"),
    "decode-pil-partial": DecodeRequest(SD, SD_SCALING, "picture"),
    "decode-mp4": DecodeRequest(VIDEO, VIDEO_SCALING, "video"),
    "decode-mp4-return-pil": DecodeRequest(VIDEO, VIDEO_SCALING, "video"),
    "decode-packed": DecodeRequest(ramp("bfloat16", 1, 2, 64), FLUX_SCALING, "picture", height=16, width=32),
    "decode-unpacked-height-width": DecodeRequest(FLUX, FLUX_SCALING, "picture", height=16, width=32),
    "decode-height-only": DecodeRequest(SD, SD_SCALING, "picture"),
    "decode-float32": DecodeRequest(ramp("float32", 1, 4, 2, 3), SD_SCALING, "picture"),
    "decode-bfloat16": DecodeRequest(ramp("bfloat16", 1, 4, 2, 3), SD_SCALING, "picture"),
    "decode-batch": DecodeRequest(ramp("float16", 2, 4, 1, 1), SD_SCALING, "signed"),
    "decode-key-in-address": DecodeRequest(SD, SD_SCALING, "picture"),
    "encode-pil-rgb": None,
    "encode-pil-rgba": None,
    "encode-pil-l": None,
    "encode-pil-p": None,
    "encode-pil-scaling": None,
    "encode-pil-scaling-shift": None,
    "encode-tensor": EncodeRequest(ramp("float16", *PIXELS), NONE, "auto", False, None, "binary"),
    "encode-tensor-scaling": EncodeRequest(ramp("float32", *PIXELS), Scaling("given", 0.13025)),
    "encode-tensor-scaling-shift": EncodeRequest(ramp("bfloat16", *PIXELS), FLUX_SCALING),
    "encode-tensor-uint8": EncodeRequest(ramp("uint8", *PIXELS)),
    "comfyui-binary": DecodeRequest(ramp("float32", 1, 4, 2, 3), NONE, "signed", height=16, width=24),
    "comfyui-base64": DecodeRequest(
        ramp("float32", 1, 4, 2, 3), NONE, "signed", envelope="base64", height=16, width=24
    ),
    "comfyui-video": DecodeRequest(ramp("float32", 1, 16, 3, 2, 1), NONE, "signed", height=24, width=16),
    "sdnext-raw": DecodeRequest(ramp("bfloat16", 1, 4, 2, 3), Scaling("given", 0.13025), "signed"),
    "sdnext-jpg": DecodeRequest(ramp("bfloat16", 1, 4, 2, 3), Scaling("given", 0.13025), "picture", "jpeg"),
    "sdnext-png": DecodeRequest(ramp("bfloat16", 1, 4, 2, 3), Scaling("given", 0.13025), "picture", "png"),
    "sdnext-no-factor": DecodeRequest(ramp("bfloat16", 1, 4, 2, 3), NONE, "signed"),
    "sdnext-flux-unbatched": DecodeRequest(ramp("bfloat16", 16, 2, 4), FLUX_SCALING, "signed", height=16, width=32),
    "sdnext-flux-packed": DecodeRequest(ramp("bfloat16", 3, 2, 64), FLUX_SCALING, "signed", height=16, width=32),
    "sdnext-zimage": DecodeRequest(FLUX, FLUX_SCALING, "signed", height=16, width=32),
    "v0-json": DecodeRequest(SD, MODEL, "picture", height=16, width=24),
    "v0-json-do-scaling-false": DecodeRequest(SD, NONE, "picture", height=16, width=24),
    "v0-json-packed": DecodeRequest(ramp("float16", 1, 2, 64), MODEL, "picture", height=16, width=32),
    "hybridge-inpainting": DecodeRequest(
        SD, SD_SCALING, "picture", "png", image=ramp("uint8", 1, 3, 16, 24), mask=ramp("uint8", 1, 16, 24)
    ),
}
SAID_SCALING = {"encode-pil-scaling": SD_SCALING, "encode-pil-scaling-shift": FLUX_SCALING}
REFUSED = {"encode-tensor-shift-only"}

Golden = dict[str, tuple[str, dict[str, str], bytes]]


def test_every_golden_case_is_read_here(golden: Golden) -> None:
    assert set(golden) == set(SAID) | REFUSED


@pytest.mark.parametrize("told", [True, False], ids=["task-in-url", "task-inferred"])
@pytest.mark.parametrize("case", SAID)
def test_golden(golden: Golden, case: str, told: bool) -> None:
    query, headers, body = golden[case]
    said = SAID[case]
    if said is None:
        said = EncodeRequest(PictureFile(body), SAID_SCALING.get(case, NONE))
    task: Task = "decode" if isinstance(said, DecodeRequest) else "encode"
    assert read_request(query, headers, body, task if told else None) == said


def test_golden_shift_without_scale_has_no_meaning_on_encode(golden: Golden) -> None:
    with pytest.raises(RequestError, match="shift_factor without scaling_factor"):
        read_request(*golden["encode-tensor-shift-only"], "encode")


@pytest.mark.parametrize("case", ["encode-pil-rgb", "encode-pil-rgba", "encode-pil-l", "encode-pil-p"])
def test_golden_pictures_arrive_in_their_own_mode(golden: Golden, recorder: ModuleType, case: str) -> None:
    import io

    from PIL import Image

    mode = case.rpartition("-")[2].upper()
    with Image.open(io.BytesIO(golden[case][2])) as sent:
        assert sent.format == "PNG"
        assert sent.mode == mode
        assert sent.convert("RGBA").tobytes() == recorder.picture(mode).convert("RGBA").tobytes()


def test_golden_file_is_what_the_installed_diffusers_sends(
    recorder: ModuleType, recorded_lines: list[dict[str, Any]]
) -> None:
    recorded = (recorder.HERE / "diffusers.jsonl").read_text().splitlines()[0]
    if f"diffusers {version('diffusers')}," not in recorded:
        pytest.skip(f"recorded from another version: {recorded}")

    def without_picture(line: dict[str, Any]) -> dict[str, Any]:
        # How a PNG is deflated is Pillow's business, and changes with it.
        is_picture = base64.b64decode(line["body"]).startswith(PNG[:8])
        return line | {"body": "PNG"} if is_picture else line

    assert [*map(without_picture, recorder.record())] == [*map(without_picture, recorded_lines)]


# ------------------------------------------------------------------------------------- the scaling table

LATENTS = {"content-type": "tensor/binary"}
SHAPE = "shape=1&shape=1&shape=1&shape=2&dtype=uint8"


def decode(extra: str, **headers: str) -> DecodeRequest:
    request = read_request(f"{SHAPE}&{extra}", LATENTS | headers, b"ab", "decode")
    assert isinstance(request, DecodeRequest)
    return request


@pytest.mark.parametrize(
    ("query", "scaling"),
    [
        ("", Scaling("none", None, None)),
        ("scaling_factor=0.18215", Scaling("given", 0.18215, None)),
        ("scaling_factor=0.3611&shift_factor=0.1159", Scaling("given", 0.3611, 0.1159)),
        ("scaling_factor=0.5&shift_factor=-1", Scaling("given", 0.5, -1.0)),
        ("scaling_factor=0.5&shift_factor=0", Scaling("given", 0.5, 0.0)),
        ("do_scaling=True", Scaling("model", None, None)),
        ("do_scaling=True&shift_factor=0.1159", Scaling("model", None, 0.1159)),
        ("do_scaling=True&scaling_factor=0.5", Scaling("given", 0.5, None)),
        ("do_scaling=False", Scaling("none", None, None)),
        ("do_scaling=False&scaling_factor=0.5", Scaling("none", None, None)),
        ("do_scaling=False&scaling_factor=0.5&shift_factor=1", Scaling("none", None, None)),
        ("do_scaling=False&shift_factor=1", Scaling("none", None, None)),
        ("do_scaling=None&scaling_factor=None&shift_factor=", Scaling("none", None, None)),
    ],
)
@pytest.mark.parametrize("task", ["decode", "encode"])
def test_scaling_table(task: Task, query: str, scaling: Scaling) -> None:
    assert read_request(f"{SHAPE}&{query}", LATENTS, b"ab", task).scaling == scaling


@pytest.mark.parametrize("factor", ["0", "0.0", "-0.5", "nan", "inf", "fast", "True"])
@pytest.mark.parametrize("do_scaling", ["", "&do_scaling=True", "&do_scaling=False"])
def test_a_scaling_factor_must_be_above_zero(factor: str, do_scaling: str) -> None:
    with pytest.raises(RequestError, match="scaling_factor"):
        decode(f"scaling_factor={factor}{do_scaling}")


def test_shift_alone_is_refused_with_both_ways_out() -> None:
    with pytest.raises(RequestError, match=r"Try: scaling_factor as well, or do_scaling=True"):
        decode("shift_factor=0.1")


def v0(parameters: dict[str, object], content_type: str = "application/json") -> DecodeRequest:
    body = {"inputs": "YWI=", "parameters": {"shape": [1, 1, 1, 2], "dtype": "uint8", **parameters}}
    request = read_request("", {"content-type": content_type}, json.dumps(body).encode(), "decode")
    assert isinstance(request, DecodeRequest)
    return request


@pytest.mark.parametrize(
    ("parameters", "scaling"),
    [
        ({}, Scaling("model", None, None)),
        ({"do_scaling": None}, Scaling("model", None, None)),
        ({"do_scaling": True}, Scaling("model", None, None)),
        ({"do_scaling": False}, Scaling("none", None, None)),
        ({"do_scaling": "False"}, Scaling("none", None, None)),
        ({"scaling_factor": 0.5}, Scaling("given", 0.5, None)),
        ({"scaling_factor": "0.5", "shift_factor": 1}, Scaling("given", 0.5, 1.0)),
        ({"shift_factor": 1}, Scaling("model", None, 1.0)),
    ],
)
def test_scaling_table_of_the_json_form(parameters: dict[str, object], scaling: Scaling) -> None:
    assert v0(parameters).scaling == scaling


def test_only_application_json_scales_by_default() -> None:
    assert v0({}, "tensor/base64").scaling == Scaling("none", None, None)


# ---------------------------------------------------------------------------------- the response matrix


@pytest.mark.parametrize(
    ("output_type", "partial", "accept", "output"),
    [
        ("pil", "False", "image/jpeg", "picture"),
        ("pil", "True", "image/jpeg", "picture"),
        ("pil", "False", "tensor/binary", "unit"),
        ("pil", "True", "tensor/binary", "unit"),
        ("pt", "False", "tensor/binary", "signed"),
        ("pt", "True", "tensor/binary", "pixels"),
        ("mp4", "False", "text/plain", "video"),
        ("mp4", "True", "text/plain", "video"),
        ("mp4", "False", "tensor/binary", "video"),
        ("pt", "False", "*/*", "signed"),
        ("pt", "False", "image/png", "signed"),
        ("pil", "False", "*/*", "picture"),
        ("pil", "False", "", "picture"),
        ("pil", "False", "tensor/base64", "unit"),
        ("pil", "False", "application/json", "unit"),
    ],
)
def test_response_matrix(output_type: str, partial: str, accept: str, output: str) -> None:
    assert decode(f"output_type={output_type}&partial_postprocess={partial}", accept=accept).output == output


@pytest.mark.parametrize(
    ("accept", "output"),
    [
        ("", "picture"),
        ("*/*", "picture"),
        ("image/png", "picture"),
        ("tensor/binary", "signed"),
        ("tensor/base64", "signed"),
        ("application/json", "signed"),
        ("video/mp4", "video"),
        ("text/html,*/*;q=0.8", "picture"),
    ],
)
def test_without_output_type_accept_decides(accept: str, output: str) -> None:
    assert decode("", accept=accept).output == output


@pytest.mark.parametrize(
    ("query", "accept", "picture_format"),
    [
        ("", "", "jpeg"),
        ("image_format=jpg", "", "jpeg"),
        ("image_format=jpeg", "", "jpeg"),
        ("image_format=PNG", "*/*", "png"),
        ("image_format=webp", "", "webp"),
        ("image_format=jpg", "image/png", "png"),
        ("image_format=png", "image/jpeg", "jpeg"),
        ("", "image/webp", "webp"),
        ("", "image/jpg", "jpeg"),
        ("", "image/png;q=0.5, image/webp", "webp"),
        ("", "image/avif, image/png;q=0.9, image/*;q=0.8", "png"),
        ("image_format=png", "image/webp;q=0", "png"),
        ("image_format=png", "image/webp;q=much", "png"),
    ],
)
def test_picture_format(query: str, accept: str, picture_format: str) -> None:
    assert decode(query, accept=accept).picture_format == picture_format


@pytest.mark.parametrize(
    ("accept", "envelope"),
    [
        ("", "binary"),
        ("*/*", "binary"),
        ("tensor/binary", "binary"),
        ("tensor/base64", "base64"),
        ("application/json", "base64"),
        ("Application/JSON; charset=utf-8", "base64"),
        ("tensor/binary, application/json;q=0.1", "binary"),
        ("tensor/binary;q=0.1, tensor/base64;q=0.2", "base64"),
    ],
)
def test_envelope(accept: str, envelope: str) -> None:
    assert decode("output_type=pt", accept=accept).envelope == envelope
    request = read_request("", {"accept": accept}, PNG, "encode")
    assert request.envelope == envelope


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


@pytest.mark.parametrize("quality", ["0", "101", "-1", "high"])
def test_quality_has_bounds(quality: str) -> None:
    with pytest.raises(RequestError, match="quality"):
        decode(f"quality={quality}")


@pytest.mark.parametrize("query", ["height=0&width=8", "height=8&width=-8", "height=8.5&width=8"])
def test_height_and_width_are_whole_and_above_zero(query: str) -> None:
    with pytest.raises(RequestError, match=r"(height|width) is"):
        decode(query)


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
    usual = write_request(DecodeRequest(SD)).query
    assert "channels_last" not in usual
    latents = WireTensor(SD.dtype, SD.shape, SD.data, channels_last=True)
    written = write_request(DecodeRequest(latents))
    assert "&channels_last=True&" in written.query
    assert written.body == SD.data
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


@pytest.mark.parametrize("case", [name for name in SAID if name != "v0-json"])
def test_golden_requests_read_back(golden: Golden, case: str) -> None:
    request = read_request(*golden[case])
    written = write_request(request)
    assert read_request(written.query, written.headers, written.body) == request


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


def test_bytes_of_four_channels_are_no_latents() -> None:
    with pytest.raises(RequestError, match="picture with alpha"):
        read_request("shape=1,4,8,8&dtype=uint8", LATENTS, bytes(256))


def test_a_long_accept_header_is_read_in_part() -> None:
    accept = ",".join(["image/x"] * 100_000) + ",image/webp"
    request = read_request("shape=1,4,8,8&dtype=float32", {**LATENTS, "accept": accept}, bytes(1024), "decode")
    assert isinstance(request, DecodeRequest)
    assert request.picture_format == "jpeg"
