"""Scaling factors, and the output and the format that an answer is to have, by query, JSON and headers."""

from __future__ import annotations

import json

import pytest

from hybridge.errors import RequestError
from hybridge.protocol import (
    DecodeRequest,
    Scaling,
    Task,
    read_request,
)

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
    request = read_request("", {"accept": accept}, b"\x89PNG\r\n\x1a\n and so on", "encode")
    assert request.envelope == envelope


@pytest.mark.parametrize("quality", ["0", "101", "-1", "high"])
def test_quality_has_bounds(quality: str) -> None:
    with pytest.raises(RequestError, match="quality"):
        decode(f"quality={quality}")


@pytest.mark.parametrize("query", ["height=0&width=8", "height=8&width=-8", "height=8.5&width=8"])
def test_height_and_width_are_whole_and_above_zero(query: str) -> None:
    with pytest.raises(RequestError, match=r"(height|width) is"):
        decode(query)
