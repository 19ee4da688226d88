"""What must hold whatever strangers send: one kind of error for each border, and round trips that lose nothing.

Examples are derived from the test itself, so that every run has the same ones.
"""

from __future__ import annotations

import base64
import io
import json
import math
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hybridge.errors import BadAnswer, HybridgeError, Overloaded, RequestError, ServerRefused, TooLarge
from hybridge.protocol import (
    DecodeRequest,
    EncodeRequest,
    FileAnswer,
    HttpResponse,
    PictureFile,
    Request,
    Scaling,
    TensorAnswer,
    WireTensor,
    read_answer,
    read_failure,
    read_request,
    write_answer,
    write_failure,
    write_request,
    write_status,
)
from hybridge.protocol import json_bodies as bodies_in_json
from hybridge.protocol.media import read_picture
from hybridge.protocol.requests import DECODE_PARAMETERS, ENCODE_PARAMETERS


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


# ------------------------------------------------------------------------------------------- vocabulary

ITEM = {"float16": 2, "float32": 4, "bfloat16": 2, "uint8": 1}
SIDES = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple)
TASKS = st.sampled_from(["decode", "encode", None])
TEXT = st.text(max_size=12)
#: JSON as strangers nest it; str() of some of these is a word that means something.
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from(["1", "True", "uint8", "pt"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([*DECODE_PARAMETERS, *ENCODE_PARAMETERS, "key", "return_type", "shapes", ""]) | TEXT
VALUES = st.sampled_from(
    "|1|0|4|-1|True|false|None|nan|1e999|0.18215|uint8|float16|bfloat16|pil|pt|mp4|png|jpg|auto|[1, 4]|[|1,4|٣"
    f"|\x1c5|%ff|{'9' * 19}|{'9' * 5000}".split("|")
)
TYPES = st.sampled_from(
    [
        "",
        "tensor/binary",
        "tensor/base64",
        "application/json",
        "application/x-safetensors",
        "image/png",
        "image/jpeg",
        "*/*",
        "text/html",
        "video/mp4",
        "tensor/base64;q=0.5, image/webp;q=x",
        ";;,,=q;",
        "TENSOR/BINARY; a=b",
        "image/*;q=1e999",
    ]
)
BODIES = st.binary(max_size=40) | st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF0000WEBP", b"abcd"])


@st.composite
def tensors(draw: st.DrawFn, sides: st.SearchStrategy[tuple[int, ...]] = SIDES) -> WireTensor:
    dtype, shape = draw(st.sampled_from(sorted(ITEM))), draw(sides)
    size = math.prod(shape) * ITEM[dtype]
    data = draw(st.binary(min_size=size, max_size=size))
    return WireTensor(dtype, shape, data, channels_last=len(shape) == 4 and draw(st.booleans()))


@st.composite
def queries(draw: st.DrawFn) -> str:
    pairs = draw(st.lists(st.tuples(NAMES, VALUES | TEXT), max_size=8))
    return "&".join(f"{name}={value}" for name, value in pairs)


@st.composite
def json_bodies(draw: st.DrawFn) -> bytes:
    inputs = draw(BODIES.map(lambda b: base64.b64encode(b).decode()) | JSON_VALUES)
    parameters = draw(st.dictionaries(NAMES, VALUES | JSON_VALUES, max_size=5) | JSON_VALUES)
    document = draw(st.sampled_from([{"inputs": inputs, "parameters": parameters}, {"inputs": inputs}, parameters]))
    return json.dumps(document).encode()


FINITE = st.floats(allow_nan=False, allow_infinity=False)
ABOVE_ZERO = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
SCALINGS = st.one_of(
    st.just(Scaling()),
    st.builds(Scaling, st.just("given"), ABOVE_ZERO, st.none() | FINITE),
    st.builds(Scaling, st.just("model"), st.none(), st.none() | FINITE),
)
FORMATS = st.sampled_from(["jpeg", "png", "webp"])
ENVELOPES = st.sampled_from(["binary", "base64"])
LENGTHS = st.none() | st.integers(1, 2**63 - 1)


@st.composite
def decode_requests(draw: st.DrawFn) -> DecodeRequest:
    output = draw(st.sampled_from(["picture", "unit", "signed", "pixels", "video"]))
    shown = draw(st.booleans())
    return DecodeRequest(
        latents=draw(tensors()),
        image=draw(tensors()) if shown else None,
        mask=draw(tensors()) if shown else None,
        scaling=draw(SCALINGS),
        output=output,
        picture_format=draw(FORMATS),
        quality=draw(st.integers(1, 100)),
        # A file has no envelope.
        envelope="binary" if output in ("picture", "video") else draw(ENVELOPES),
        height=draw(LENGTHS),
        width=draw(LENGTHS),
        preview=draw(st.booleans()),
    )


@st.composite
def encode_requests(draw: st.DrawFn) -> EncodeRequest:
    magic = draw(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x00\xff\x00\xffWEBP"]))
    picture = PictureFile(magic + draw(st.binary(max_size=40)))
    moments = draw(st.booleans())
    return EncodeRequest(
        image=draw(st.just(picture) | tensors()),
        scaling=Scaling() if moments else draw(SCALINGS),
        value_range=draw(st.sampled_from(["auto", "unit", "signed"])),
        sample=not moments and draw(st.booleans()),
        seed=None if moments else draw(st.none() | st.integers(0, 2**63 - 1)),
        moments=moments,
        envelope=draw(ENVELOPES),
    )


# ------------------------------------------------------------------------------------- reading requests


def is_read_or_refused(query: str, headers: dict[str, str], body: bytes, task: Any) -> None:
    try:
        request = read_request(query, headers, body, task)
    except RequestError as error:
        refusal = error
    else:
        assert isinstance(request, DecodeRequest | EncodeRequest)
        assert task in (None, "decode" if isinstance(request, DecodeRequest) else "encode")
        return
    assert len(str(refusal)) < 2000  # a stranger's text is not echoed at length


HEADERS = st.fixed_dictionaries({}, optional={"content-type": TYPES | TEXT, "accept": TYPES | TEXT})


@examples(500)
@given(queries() | st.text(max_size=60), HEADERS, BODIES | json_bodies(), TASKS)
def test_anything_is_read_or_refused(query: str, headers: dict[str, str], body: bytes, task: Any) -> None:
    is_read_or_refused(query, headers, body, task)


@examples(400)
@given(json_bodies(), st.sampled_from(["application/json", "tensor/base64"]), TASKS)
def test_any_json_is_read_or_refused(body: bytes, content_type: str, task: Any) -> None:
    is_read_or_refused("", {"content-type": content_type}, body, task)


@examples(600)
@given(data=st.data())
def test_a_valid_request_with_one_thing_wrong(
    golden: dict[str, tuple[str, dict[str, str], bytes]], data: st.DataObject
) -> None:
    query, headers, body = golden[data.draw(st.sampled_from(sorted(golden)))]
    pairs, headers = query.split("&"), dict(headers)
    which = data.draw(st.integers(0, len(pairs) - 1))
    kind = data.draw(st.sampled_from(["drop", "double", "value", "name", "type", "accept", "cut", "grow", "flip"]))
    if kind == "drop":
        del pairs[which]
    elif kind == "double":
        pairs.append(pairs[which])
    elif kind == "value":
        pairs[which] = f"{pairs[which].partition('=')[0]}={data.draw(VALUES | TEXT)}"
    elif kind == "name":
        pairs[which] = f"{data.draw(NAMES)}={pairs[which].partition('=')[2]}"
    elif kind == "type":
        headers["content-type"] = data.draw(TYPES)
    elif kind == "accept":
        headers["accept"] = data.draw(TYPES)
    elif kind == "cut":
        body = body[: data.draw(st.integers(0, len(body) - 1))]
    elif kind == "grow":
        body += data.draw(BODIES)
    else:
        at = data.draw(st.integers(0, len(body) - 1))
        body = body[:at] + bytes([body[at] ^ data.draw(st.integers(1, 255))]) + body[at + 1 :]
    is_read_or_refused("&".join(pairs), headers, body, data.draw(TASKS))


@examples(300)
@given(
    st.binary(max_size=60),
    st.dictionaries(TEXT, JSON_VALUES, max_size=3),
    st.integers(8, 40),
    st.sampled_from([(2, 4096), (10, 16), (4096, 16)]),
    st.booleans(),
)
def test_json_bodies_hold_what_json_says(
    data: bytes, parameters: dict[str, Any], width: int, sizes: tuple[int, int], is_ascii: bool
) -> None:
    """With pieces and texts so small that every way of cutting a body up is taken."""
    inputs = base64.b64encode(data).decode()
    inputs = "\n".join(inputs[at : at + width] for at in range(0, len(inputs), width))
    try:
        parameters = json.loads(json.dumps(parameters, allow_nan=False), parse_int=lambda digits: int(digits[:19]))
    except ValueError:
        parameters = {}
    document = json.dumps({"parameters": parameters, "inputs": inputs}, ensure_ascii=is_ascii)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies_in_json, "_PIECE", 4 * sizes[0])
        patch.setattr(bodies_in_json, "_MAX_TEXT", sizes[1])
        try:
            read = bodies_in_json.read_json_body(document.encode("utf-8", "replace"))
        except TooLarge:
            assert sizes[1] < 4096
        else:
            assert read == (data, json.loads(document.encode("utf-8", "replace"))["parameters"])


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_of_any_depth_is_read_or_refused(opening: str) -> None:
    """Around the interpreter's recursion limit, where parsing may succeed and showing the value may not."""
    closing = "]" if opening == "[" else "}"
    for depth in [*range(900, 1000, 3), 20_000]:
        for name in ("do_scaling", "shape", "output_type", "seed"):
            value = opening * depth + "1" + closing * depth
            body = f'{{"inputs": "YQ==", "parameters": {{"shape": [1], "dtype": "uint8", "{name}": {value}}}}}'
            is_read_or_refused("", {"content-type": "application/json"}, body.encode(), None)
        for member in ("error", "code"):
            body = f'{{"error": "x", "{member}": {opening * depth}1{closing * depth}}}'
            assert isinstance(read_failure(HttpResponse(500, {}, body.encode())), ServerRefused | BadAnswer)


# ------------------------------------------------------------------------------------------ round trips


@examples(300)
@given(decode_requests() | encode_requests())
def test_a_request_reads_back_as_itself(request: Request) -> None:
    written = write_request(request)
    task = "decode" if isinstance(request, DecodeRequest) else "encode"
    assert read_request(written.query, written.headers, written.body, task) == request
    written.query.encode("ascii")
    assert all(name == name.lower() for name in written.headers)


@examples(200)
@given(decode_requests())
def test_a_decode_request_needs_no_task(request: DecodeRequest) -> None:
    written = write_request(request)
    assert read_request(written.query, written.headers, written.body) == request


@examples(200)
@given(tensors(), ENVELOPES)
def test_a_tensor_answer_reads_back_as_itself(tensor: WireTensor, envelope: Any) -> None:
    answer = TensorAnswer(tensor, envelope)
    assert read_answer(write_answer(answer)) == answer


# ------------------------------------------------------------------------------------- reading answers

SHAPES = st.sampled_from(
    ["[1, 4]", "[2,2]", "4", "[1.0, 4]", "[true, 4]", "[NaN]", "[-4]", "[", "null", '{"4": 1}']
)
ANSWER_HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-type": TYPES | TEXT,
        "shape": SHAPES | JSON_VALUES.map(json.dumps) | TEXT,
        "dtype": st.sampled_from(["uint8", "float16", "float64", ""]) | TEXT,
        "retry-after": VALUES | TEXT,
    },
)


def is_answer_or_bad(response: HttpResponse) -> None:
    try:
        answer = read_answer(response)
    except BadAnswer:
        return
    assert isinstance(answer, TensorAnswer | FileAnswer)
    if isinstance(answer, TensorAnswer):
        assert all(isinstance(side, int) for side in answer.tensor.shape)


@examples(300)
@given(st.integers(200, 599), ANSWER_HEADERS, BODIES | json_bodies())
def test_any_answer_is_read_or_bad(status: int, headers: dict[str, str], body: bytes) -> None:
    is_answer_or_bad(HttpResponse(status, headers, body))


@examples(300)
@given(SHAPES | JSON_VALUES.map(json.dumps), st.sampled_from(["uint8", "float16", "float64"]), BODIES)
def test_any_shape_header_is_read_or_bad(shape: str, dtype: str, body: bytes) -> None:
    is_answer_or_bad(HttpResponse(200, {"content-type": "tensor/binary", "shape": shape, "dtype": dtype}, body))


@examples(300)
@given(json_bodies() | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_base64_answer_is_read_or_bad(body: bytes) -> None:
    is_answer_or_bad(HttpResponse(200, {"content-type": "tensor/base64"}, body))


ERROR_BODIES = st.one_of(
    BODIES,
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries({"error": JSON_VALUES}, optional={"code": JSON_VALUES}).map(
        lambda document: json.dumps(document).encode()
    ),
)


@examples(300)
@given(st.integers(300, 599), ANSWER_HEADERS, ERROR_BODIES)
def test_any_failure_is_explained_or_bad(status: int, headers: dict[str, str], body: bytes) -> None:
    failure = read_failure(HttpResponse(status, headers, body))
    assert isinstance(failure, ServerRefused | BadAnswer)
    if isinstance(failure, ServerRefused):
        assert failure.status == status
        assert failure.retry_after_s is None or 0 <= failure.retry_after_s < math.inf


# ------------------------------------------------------------------------------------- writing failures

#: Every code point, those that stand for no character among them.
ANY_TEXT = st.text(st.characters(exclude_categories=[]) | st.characters(categories=["Cs"]), max_size=20)


@examples(300)
@given(ANY_TEXT, st.none() | ANY_TEXT, st.none() | ANY_TEXT, st.none() | ANY_TEXT, st.floats())
def test_a_failure_is_always_json_with_error(
    what: str, saw: str | None, expected: str | None, hint: str | None, seconds: float
) -> None:
    failures: list[HybridgeError] = [
        RequestError(what, saw=saw, expected=expected, hint=hint),
        Overloaded(what, retry_after_s=seconds, hint=hint),
    ]
    for response in (*map(write_failure, failures), write_status(404, what)):
        assert isinstance(json.loads(response.body)["error"], str)
        refused = read_failure(response)
        assert isinstance(refused, ServerRefused)
        assert refused.status == response.status
    sentence = json.loads(write_failure(failures[0]).body)["error"]
    assert sentence == str(failures[0]).encode("utf-8", "replace").decode()


# ----------------------------------------------------------------------------------------- picture files


def picture_files() -> list[bytes]:
    ramp = bytes(i * 41 % 256 for i in range(24 * 16 * 4))
    rgba = Image.frombytes("RGBA", (24, 16), ramp)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    variants: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgba, "PNG", {}),
        (rgba.convert("RGB"), "PNG", {"exif": exif}),
        (rgba.convert("RGB").convert("P"), "PNG", {"transparency": bytes(range(64))}),
        (rgba.convert("L").convert("I;16"), "PNG", {}),
        (rgba.convert("1"), "PNG", {}),
        (rgba.convert("RGB"), "JPEG", {"exif": exif}),
        (rgba.convert("CMYK"), "JPEG", {"progressive": True}),
        (rgba, "WEBP", {"lossless": True}),
        (rgba.convert("RGB"), "WEBP", {"quality": 50, "exif": exif}),
        (rgba, "PNG", {"save_all": True, "append_images": [rgba.transpose(Image.Transpose.ROTATE_180)]}),
    ]
    files = []
    for image, file_format, options in variants:
        file = io.BytesIO()
        image.save(file, file_format, **options)
        files.append(file.getvalue())
    return files


FILES = picture_files()


@examples(1200)
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.none() | st.floats(0, 1),
    st.binary(max_size=8),
)
def test_a_damaged_picture_is_read_or_refused(
    data: bytes, changes: list[tuple[float, int]], keep: float | None, tail: bytes
) -> None:
    damaged = bytearray(data)
    for where, value in changes:
        damaged[int(where * len(damaged))] = value
    if keep is not None:
        del damaged[int(keep * len(damaged)) :]
    damaged += tail
    # As in a server: what Pillow has to warn about is no exception there.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tensor = read_picture(bytes(damaged), max_pixels=10_000)
        except RequestError:
            return
    one, height, width, channels = tensor.shape
    assert (one, channels, tensor.dtype) == (1, 3, "uint8")
    assert height % 8 == width % 8 == 0
    assert 64 <= height * width <= 10_000


def test_the_undamaged_pictures_are_all_read() -> None:
    shapes = [read_picture(data, max_pixels=384).shape for data in FILES]
    assert [shape[1:3] for shape in shapes] == [
        ((24, 16) if index in (1, 5, 8) else (16, 24)) for index in range(len(FILES))
    ]
