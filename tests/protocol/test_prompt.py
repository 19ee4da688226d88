"""Prompts on the wire: what is read, and what is refused."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridge.errors import HybridgeError, RequestError, TooLarge, UnsupportedMedia
from hybridge.protocol import PromptLimits, PromptRequest, read_prompt_request, write_prompt_request

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
JSON = {"content-type": "application/json"}


def examples(count: int) -> settings:
    return settings(max_examples=count, derandomize=True, deadline=None)


def read(body: bytes | str, headers: dict[str, str] | None = None, query: str = "") -> PromptRequest:
    encoded = body.encode() if isinstance(body, str) else body
    return read_prompt_request(query, JSON if headers is None else headers, encoded)


def test_null_is_kept_apart_from_the_empty_text_and_from_nothing() -> None:
    inputs = read('{"prompt": ["a", ""], "negative_prompt": null, "prompt_2": ""}').inputs
    assert inputs == {"prompt": ["a", ""], "negative_prompt": None, "prompt_2": ""}
    assert inputs["negative_prompt"] is None
    assert "negative_prompt_2" not in inputs


def test_dropping_padding_is_asked_for_in_the_query() -> None:
    assert not read('{"prompt": "a"}').drop_padding
    assert read('{"prompt": "a"}', query="drop_padding=True").drop_padding


def test_any_spelling_of_the_type_that_tools_send_by_habit_is_json() -> None:
    for headers in (
        {},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "Application/JSON; x"},
    ):
        assert read('{"prompt": "a"}', headers).inputs == {"prompt": "a"}


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXTS,
    st.lists(TEXTS, min_size=1, max_size=4),
    st.dictionaries(TEXTS, st.integers(0, 99) | TEXTS, max_size=3),
)


@given(
    inputs=st.dictionaries(TEXTS, VALUES, min_size=1, max_size=6),
    images=st.lists(st.binary(max_size=40).map(lambda tail: PNG + tail), max_size=3),
    drop=st.booleans(),
)
@examples(150)
def test_what_is_written_is_read_again(inputs: dict[str, Any], images: list[bytes], drop: bool) -> None:
    request = PromptRequest(inputs, tuple(images), drop)
    wire = write_prompt_request(request)
    assert read_prompt_request(wire.query, wire.headers, wire.body) == request


def test_a_picture_that_holds_the_boundary_comes_through() -> None:
    boundary = write_prompt_request(PromptRequest({"prompt": "a"}, (PNG,))).headers["content-type"].split("=")[1]
    request = PromptRequest({"prompt": "a"}, (PNG + f"\r\n--{boundary}\r\n".encode(), PNG))
    wire = write_prompt_request(request)
    assert read_prompt_request(wire.query, wire.headers, wire.body) == request


def test_forms_of_curl_and_of_httpx_are_read() -> None:
    curl = (
        b'--------------------------d74496d66958873e\r\nContent-Disposition: form-data; name="request"\r\n'
        b'Content-Type: application/json\r\n\r\n{"prompt": "a"}\r\n--------------------------d74496d66958873e\r\n'
        b'Content-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        + PNG
        + b"\r\n--------------------------d74496d66958873e--\r\n"
    )
    headers = {"content-type": "multipart/form-data; boundary=------------------------d74496d66958873e"}
    assert read(curl, headers) == PromptRequest({"prompt": "a"}, (PNG,))

    sent = httpx.Request(
        "POST",
        "http://a/",
        files=[("request", (None, b'{"prompt": "a"}', "application/json")), ("image", ("a.png", PNG, "image/png"))],
    )
    body = sent.read()
    assert read(body, {"content-type": sent.headers["content-type"]}) == PromptRequest({"prompt": "a"}, (PNG,))


REFUSED: list[tuple[str, Any, type[HybridgeError], str]] = [
    ("an empty list", '{"prompt": []}', RequestError, "`prompt` is an empty list"),
    ("ten thousand prompts", json.dumps({"prompt": ["a"] * 10_000}), TooLarge, "saw 10000, expected at most 32"),
    ("a megabyte of text", json.dumps({"prompt": "a" * 2**20}), TooLarge, "too large: saw 1048590 bytes"),
    ("a long text", json.dumps({"prompt": "a" * 20_000}), TooLarge, "saw 20000 characters, expected at most 16384"),
    ("a lone surrogate", '{"prompt": "a \\ud83d"}', RequestError, r"the lone surrogate \\ud83d"),
    ("a lone surrogate in a name", '{"\\udc00": 1}', RequestError, r"the lone surrogate \\udc00"),
    ("invalid UTF-8", b'{"prompt": "\xff"}', RequestError, "the byte 0xff, which is not UTF-8"),
    ("UTF-16", '{"prompt": "a"}'.encode("utf-16"), RequestError, "UTF-16"),
    ("a number that is none", '{"prompt": NaN}', RequestError, "NaN"),
    ("a number beyond floats", '{"prompt": 1e999}', RequestError, "no finite number"),
    ("a number of a thousand digits", '{"prompt": ' + "1" * 1000 + "}", RequestError, "1000 digits"),
    ("nested lists", '{"prompt": [["a"]]}', RequestError, "nested too deeply"),
    ("nested very deeply", '{"prompt": ' + "[" * 50_000 + "]" * 50_000 + "}", RequestError, "nested too deeply"),
    ("a list of numbers for prompts", '{"prompt": ["a", 1]}', RequestError, "no list of texts"),
    ("a null among prompts", '{"prompt": ["a", null]}', RequestError, "no list of texts"),
    ("a key twice", '{"prompt": "a", "prompt": "b"}', RequestError, "a key twice"),
    ("nothing", "", RequestError, "the body is not JSON"),
    ("an empty object", "{}", RequestError, "no object with members"),
    ("a bare text", '"a cat"', RequestError, "no object with members: saw str"),
    ("many members", json.dumps({f"a{n}": 1 for n in range(65)}), TooLarge, "too many members"),
    ("a long name", json.dumps({"a" * 61: 1}), TooLarge, "a long name"),
]


@pytest.mark.parametrize(("body", "kind", "said"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_cannot_be_a_prompt_is_refused(body: Any, kind: type[HybridgeError], said: str) -> None:
    with pytest.raises(kind, match=said):
        read(body)


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert read('{"prompt": "\\ud83d\\ude00"}').inputs == {"prompt": "😀"}


def test_an_unknown_parameter_of_the_query_is_named() -> None:
    with pytest.raises(RequestError, match="drop_padding"):
        read('{"prompt": "a"}', query="drop_paddings=True")


def test_another_type_is_refused() -> None:
    with pytest.raises(UnsupportedMedia, match="a prompt comes as JSON: saw tensor/binary"):
        read(b"", {"content-type": "tensor/binary"})


FORM = {"content-type": "multipart/form-data; boundary=b"}
FIELD = b'--b\r\ncontent-disposition: form-data; name="%s"\r\n\r\n%s\r\n'
FORMS: list[tuple[str, bytes, dict[str, str], str]] = [
    ("no boundary", b"", {"content-type": "multipart/form-data"}, "names no boundary"),
    (
        "another boundary",
        FIELD % (b"request", b"{}") + b"--b--",
        {"content-type": "multipart/form-data; boundary=c"},
        "no boundary",
    ),
    ("cut short", FIELD % (b"request", b"{}"), FORM, "cannot be read"),
    ("cut short in a head", b'--b\r\ncontent-disposition: form-data; name="a"', FORM, "cannot be read"),
    ("empty", b"", FORM, "cannot be read"),
    ("without a request", b"--b--\r\n", FORM, "needs one field `request`: saw 0"),
    (
        "with two",
        2 * (FIELD % (b"request", b'{"prompt": "a"}')) + b"--b--",
        FORM,
        "needs one field `request`: saw 2",
    ),
    ("with another field", FIELD % (b"prompt", b"a") + b"--b--", FORM, "unknown field of the form: saw 'prompt'"),
    ("without a name", b"--b\r\nx: y\r\n\r\n\r\n--b--", FORM, "has no name"),
    ("with what is no picture", FIELD % (b"image", b"GIF89a") + b"--b--", FORM, "no picture file"),
    ("with many parts", 17 * (FIELD % (b"image", PNG)) + b"--b--", FORM, "too many parts"),
    (
        "with many pictures",
        FIELD % (b"request", b'{"prompt": "a"}') + 9 * (FIELD % (b"image", PNG)) + b"--b--",
        FORM,
        "too many pictures: saw 9",
    ),
]


@pytest.mark.parametrize(("body", "headers", "said"), [row[1:] for row in FORMS], ids=[row[0] for row in FORMS])
def test_forms_that_cannot_be_read_are_refused(body: bytes, headers: dict[str, str], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        read(body, headers)


@given(body=st.binary(max_size=200) | st.text(max_size=100).map(str.encode), form=st.booleans())
@examples(300)
def test_strangers_bytes_raise_one_kind_of_error(body: bytes, form: bool) -> None:
    with contextlib.suppress(RequestError):
        read(FIELD % (b"request", body) + b"--b--" if form else body, FORM if form else JSON)


def test_limits_are_the_servers() -> None:
    with pytest.raises(TooLarge, match="`negative_prompt_2` has too many items: saw 3, expected at most 2"):
        read_prompt_request("", JSON, b'{"negative_prompt_2": ["a", "b", "c"]}', PromptLimits(max_prompts=2))
    options = b'{"complex_human_instruction": ["a", "b", "c"]}'
    assert read_prompt_request("", JSON, options, PromptLimits(max_prompts=2)).batch == 1


def test_a_prompt_that_cannot_be_sent_is_refused_before_it_is() -> None:
    with pytest.raises(RequestError, match="half a character"):
        write_prompt_request(PromptRequest({"prompt": "\ud800"}))
    with pytest.raises(RequestError, match="cannot be sent"):
        write_prompt_request(PromptRequest({"prompt": object()}))  # type: ignore[dict-item]
