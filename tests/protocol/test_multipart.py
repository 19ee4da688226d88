"""Several answers in one response, and every way in which such a response can be broken."""

from __future__ import annotations

import pytest

from hybridge.errors import BadAnswer
from hybridge.protocol import HttpResponse, PartsReader, end_parts, write_part

PREVIEW = HttpResponse(200, {"content-type": "image/png"}, b"\x89PNG --hybridge-part\r\n\r\n in the middle")
FAILURE = HttpResponse(500, {"content-type": "application/json"}, b'{"error": "no"}')
WIRE = write_part("preview", PREVIEW) + write_part("picture", FAILURE) + end_parts()


@pytest.mark.parametrize("step", [1, 7, 64, len(WIRE)])
def test_parts_come_out_as_they_went_in_however_they_are_cut(step: int) -> None:
    reader, parts = PartsReader(), []
    for start in range(0, len(WIRE), step):
        parts += reader.feed(WIRE[start : start + step])
    reader.finish()
    assert [(part.status, part.body, part.headers["hybridge-part"]) for part in parts] == [
        (200, PREVIEW.body, "preview"),
        (500, FAILURE.body, "picture"),
    ]
    assert parts[0].headers["content-type"] == "image/png"


def test_a_part_is_given_as_soon_as_it_is_whole() -> None:
    reader, first = PartsReader(), write_part("preview", PREVIEW)
    assert reader.feed(first[:-1]) == []
    assert len(reader.feed(first[-1:])) == 1


@pytest.mark.parametrize("kept", [0, 10, len(WIRE) - len(end_parts())])
def test_a_response_that_ends_too_early(kept: int) -> None:
    reader = PartsReader()
    reader.feed(WIRE[:kept])
    with pytest.raises(BadAnswer, match="cut short"):
        reader.finish()


@pytest.mark.parametrize(
    "data",
    [
        b"<html>",
        b"--another-boundary\r\n\r\n",
        b"--hybridge-part\r\ncontent-length: 2\r\n\r\nok\r\n",
        b"--hybridge-part\r\ncontent-length: many\r\nhybridge-status: 200\r\n\r\n",
        b"--hybridge-part\r\ncontent-length: -5\r\nhybridge-status: 200\r\n\r\n",
        b"--hybridge-part\r\nx: " + b"y" * 20_000,
    ],
)
def test_what_is_no_such_response(data: bytes) -> None:
    with pytest.raises(BadAnswer, match="cannot be read"):
        PartsReader().feed(data)
