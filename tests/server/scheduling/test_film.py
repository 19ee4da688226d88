"""A film between the device, the encoder and its reader."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from hybridge.errors import EngineFailure, HybridgeError, Stopped, StorageFailure
from hybridge.protocol import VideoOptions
from hybridge.protocol.video_reader import read_video
from hybridge.protocol.video_writer import VideoWriter
from hybridge.server.scheduling.film import Film


def film(**arguments: Any) -> Film:
    return Film(VideoOptions(), 64, 32, 95, **arguments)


def frames(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 256, (count, 32, 64, 3), np.uint8)


def whole(made: Film, *parts: np.ndarray[Any, Any]) -> bytes:
    made.begin()
    for part in parts:
        made.put(part)
    made.end()
    return made.whole()


async def read(made: Film) -> bytes:
    return b"".join([piece async for piece in made.pieces()])


def test_parts_make_the_same_file() -> None:
    all_at_once = whole(film(), frames(9))
    assert whole(film(), *np.split(frames(9), [1, 5])) == all_at_once
    assert read_video(all_at_once, max_pixels=10**6).shape == (9, 32, 64, 3)


def test_it_is_read_as_it_is_written() -> None:
    made = film()
    writing = threading.Thread(target=lambda: whole(made, *np.split(frames(40), 8)))

    async def scene() -> bytes:
        writing.start()
        return await read(made)

    assert asyncio.run(scene()) == whole(film(), frames(40))
    writing.join()


def test_a_run_that_is_made_again_adds_only_what_is_new() -> None:
    made = film()
    made.begin()
    made.put(frames(9)[:3])
    assert whole(made, *np.split(frames(9), [2, 6])) == whole(film(), frames(9))
    assert made.frames == 9


def test_what_is_not_read_goes_to_disk() -> None:
    made = film(memory_bytes=10_000)
    expected = whole(film(), frames(60))
    assert len(expected) > 50_000
    assert whole(made, frames(60)) == expected
    assert made.is_on_disk
    assert asyncio.run(read(made)) == expected
    made.close()


def test_the_device_waits_for_the_encoder_and_for_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    may_encode = threading.Event()
    add = VideoWriter.add
    monkeypatch.setattr(VideoWriter, "add", lambda writer, part: may_encode.wait(60) and add(writer, part))
    made, accepted = film(), []

    def put() -> None:
        for part in np.split(frames(8), 8):
            made.put(part)
            accepted.append(made.frames)

    made.begin()
    putting = threading.Thread(target=put)
    putting.start()
    while made.frames < 2:  # one that is encoded, one that waits
        assert putting.is_alive()
    putting.join(0.05)
    assert putting.is_alive()
    assert made.frames == 2
    may_encode.set()
    putting.join(60)
    made.end()
    assert made.whole() == whole(film(), frames(8))  # nobody has read it by then


def test_a_reader_that_leaves_stops_the_device() -> None:
    made = film()
    made.begin()
    made.put(frames(1))
    made.close()
    with pytest.raises(Stopped):
        made.put(frames(2))


def test_a_failed_job_ends_the_reading() -> None:
    made = film()
    made.begin()
    made.put(frames(9))

    async def scene() -> None:
        pieces = made.pieces()
        await anext(pieces)
        made.close(EngineFailure("NaN"))
        with pytest.raises(EngineFailure, match="NaN"):
            await read(made)

    asyncio.run(scene())


@pytest.mark.parametrize("error", [OSError("no space left on device"), ValueError("?")])
def test_a_failed_encoder_ends_the_job(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> bytes:
        raise error

    monkeypatch.setattr(VideoWriter, "add", fail)
    made = film()
    made.begin()
    made.put(frames(1))
    with pytest.raises(HybridgeError, match="video") as first:
        made.whole()
    with pytest.raises(type(first.value)):
        made.put(frames(2))


def test_a_full_disk_is_said_of_bytes_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, a front whose disk was full broke off as if its client had left."""
    made = film(memory_bytes=0)
    made.feed(b"begin")
    assert made._file is not None
    monkeypatch.setattr(made._file, "write", _no_space)
    with pytest.raises(StorageFailure, match="temporary file"):
        made.feed(b"end", is_last=True)


def test_an_encoder_that_fails_after_its_reader_left_frees_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_fail = threading.Event(), threading.Event()

    def fail(*_: object) -> bytes:
        begun.set()
        assert may_fail.wait(60)
        raise ValueError("?")

    made = film()
    made.feed(b"something")
    monkeypatch.setattr(VideoWriter, "add", fail)
    made.begin()
    made.put(frames(1))
    assert begun.wait(60)
    made.close()
    assert made._file is not None
    may_fail.set()
    with made._change:
        assert made._change.wait_for(lambda: made._file is None, 60)


def _no_space(_: bytes) -> int:
    raise OSError("no space left on device")
