"""Servers that are broken or hostile: our own error, in time and in little memory, and another server is asked."""

from __future__ import annotations

import asyncio
import gc
import gzip
import io
import logging
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hostile import Behaviour, Hostile, chunked, drips, floods, in_json, parts, png, says, sends, tensor, waits
from PIL import Image

from hybridge.client import AsyncClient, Client, Retry, ServerWarning
from hybridge.errors import BadAnswer, ClientError, ServerRefused, ServerTimeout, ServerUnreachable
from hybridge.protocol import TensorAnswer, WireTensor, write_answer

#: Sixty-four pixels on each side.
LATENTS = np.ones((1, 4, 8, 8), np.float32)
PIXELS = write_answer(TensorAnswer(WireTensor("uint8", (1, 64, 64, 3), bytes(64 * 64 * 3))))

NEVER = Retry(attempts=1)
OK = b"HTTP/1.1 200 OK\r\n"

#: Generous, because the machine may be busy: what hangs does so for ever.
HANGS_S = 30.0
MOST_BYTES = 24 << 20


def jpeg(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (*size, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


PICTURE = {"content-type": "image/png"}
VIDEO = {"content-type": "video/mp4"}
BOX = b"\0\0\0\x10ftypmp42\0\0\0\0" + b"\0\0\0\x08moov"

LATE: dict[str, Behaviour] = {
    "says nothing": waits,
    "a head that drips": drips(OK + b"x: ", b"x"),
    "100 for ever": drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "103 for ever, fast": floods(b"", b"HTTP/1.1 103 Early Hints\r\nlink: </>\r\n\r\n" * 100),
    "a body that drips": drips(OK + b"content-type: tensor/binary\r\ncontent-length: 12288\r\n\r\n", b"\0"),
    "an error that drips": drips(b"HTTP/1.1 500 X\r\ncontent-length: 12288\r\n\r\n", b"\0"),
}

WRONG: dict[str, Behaviour] = {
    "a body without an end": chunked(200, "content-type: tensor/binary\r\n"),
    "a body of a terabyte": says(200, {"content-type": "tensor/binary"}, promised=10**12),
    "a length that is none": sends(OK + b"content-length: 99999999999999999999999999\r\n\r\n"),
    "gzip": says(200, {"content-type": "tensor/binary", "content-encoding": "gzip"}, gzip.compress(bytes(1 << 26))),
    "an error without an end": chunked(500),
    "a head without an end": floods(OK, b"x: " + b"x" * 1000 + b"\r\n"),
    "no HTTP": sends(b"220 mail.example ESMTP\r\n"),
    "TLS": sends(b"\x15\x03\x01\x00\x02\x02\x46"),
    "a header that is none": sends(OK + b"\xff\x00 : \r\n\r\n"),
    "headers that are no text": says(200, b"content-type: \xff\xfe\r\nserver-timing: \xff;dur=\xb2\r\n"),
    "closes at once": sends(b""),
    "closes in the head": sends(OK + b"content-le"),
    "closes in the body": says(200, PIXELS.headers, PIXELS.body[:99], promised=len(PIXELS.body)),
    "another shape": tensor("[1, 128, 128, 3]", size=128 * 128 * 3 + 1),
    "a shape of another size": tensor("[1, 64, 65, 3]", size=64 * 65 * 3),
    "two for one": tensor("[2, 64, 64, 3]", size=2 * 64 * 64 * 3),
    "another dtype": tensor("[1, 64, 64, 3]", "float16", 2 * 64 * 64 * 3),
    "a dtype that is none": tensor("[1, 64, 64, 3]", "float8"),
    "a shape of truths": tensor("[true, 64, 64, 3]"),
    "a negative shape": tensor("[-1, -64, 64, 3]"),
    "a huge shape": tensor("[1, 64, 64, 3" + "0" * 400 + "]"),
    "a shape with infinity": tensor("[1, 64, 64, 1e999]"),
    "a shape that is a number": tensor("7"),
    "a deep shape": tensor("[" * 20_000),
    "no shape": says(200, {"content-type": "tensor/binary", "dtype": "uint8"}, PIXELS.body),
    "a file for a tensor": says(200, PICTURE, png(64, 64)),
    "no JSON": in_json(b'{"error'),
    "base64 that is none": says(
        200, {"content-type": "tensor/base64"}, b'{"inputs": 7, "parameters": {"shape": 1e999, "dtype": []}}'
    ),
    "deep JSON": in_json(b"[" * 60_000, 500),
    "an error that is a list": in_json({"error": [[["x"] * 100]], "code": {"a": None}}, 500),
    "an error with half a character": in_json(b'{"error": "\\ud800 \\u001b[2J"}', 500),
    "nowhere": says(302, {"location": "http://[::1"}),
    "javascript": says(302, {"location": "javascript:alert(1)"}),
    "a file": says(307, {"location": "file:///etc/passwd"}),
    "itself": says(308, {"location": "/"}),
    "not modified": sends(b"HTTP/1.1 304 X\r\n\r\n"),
    "late by a date beyond time": says(503, {"retry-after": "Sun, 99 Nov 99999 99:99:99 GMT"}, b'{"error": "x"}'),
}

WRONG_PICTURES: dict[str, Behaviour] = {
    "a picture of 13,000²": says(200, PICTURE, png(13_000, 13_000)),
    "a bomb": says(200, PICTURE, png(60_000, 60_000)),
    "a picture of no size": says(200, PICTURE, png(0, 0)),
    "half a PNG": says(200, PICTURE, png(64, 64, is_whole=False)),
    "a PNG without rows": says(200, PICTURE, png(64, 128)),
    "half a JPEG": says(200, {"content-type": "image/jpeg"}, jpeg((64, 64))[:900]),
    "a large JPEG": says(200, {"content-type": "image/jpeg"}, jpeg((640, 64))),
    "a broken WebP": says(200, {"content-type": "image/webp"}, b"RIFF\x20\0\0\0WEBPVP8X" + bytes(24)),
    "another picture": says(200, PICTURE, b"GIF89a" + bytes(40)),
    "a tensor for a picture": tensor("[1, 64, 64, 3]"),
}

WRONG_VIDEOS: dict[str, Behaviour] = {
    "half an MP4": says(200, VIDEO, BOX + b"\0\0\xff\xffmdat" + bytes(99)),
    "no index": says(200, VIDEO, BOX[:16] + b"\0\0\0\x08mdat"),
    "boxes of no length": says(200, VIDEO, BOX + bytes(800)),
}


def decode(client: Any, **arguments: Any) -> Any:
    return client.decode(LATENTS, model="m", **arguments)


def failure(
    url: str | list[str], call: Callable[[Any], Any], *, is_async: bool, **arguments: Any
) -> tuple[BaseException, float]:
    """What a call fails with, and how many seconds it took; a call that hangs is a failed test, not a hung one."""
    options = {"retries": NEVER, "timeout": HANGS_S, **arguments}

    async def awaited() -> None:
        async with AsyncClient(url, **options) as client:
            result = call(client)
            if hasattr(result, "__aiter__"):
                async for _ in result:
                    pass
            else:
                await result

    def blocking() -> None:
        with Client(url, **options) as client:
            result = call(client)
            if hasattr(result, "__next__"):
                list(result)

    def run() -> None:
        if is_async:
            asyncio.run(awaited())
        else:
            blocking()

    pool = ThreadPoolExecutor(1)
    begun = time.monotonic()
    try:
        error = pool.submit(run).exception(timeout=2 * HANGS_S)
    finally:
        pool.shutdown(wait=False)
    assert error is not None
    return error, time.monotonic() - begun


both = pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])


@both
@pytest.mark.parametrize("name", LATE)
def test_a_deadline_bounds_the_whole_call(name: str, is_async: bool) -> None:
    with Hostile(LATE[name]) as server:
        error, seconds = failure(server.url, decode, is_async=is_async, deadline_s=0.4)
    assert isinstance(error, ServerTimeout), error
    assert server.url in str(error)
    assert seconds < HANGS_S / 2


@both
def test_a_deadline_bounds_retries_and_other_servers(is_async: bool) -> None:
    with Hostile(LATE["a head that drips"]) as one, Hostile(LATE["100 for ever"]) as other:
        error, seconds = failure([one.url, other.url], decode, is_async=is_async, deadline_s=0.4, retries=Retry())
    assert isinstance(error, ServerTimeout), error
    assert seconds < HANGS_S / 2


@both
def test_a_deadline_bounds_an_upload_that_nobody_reads(is_async: bool) -> None:
    large = np.ones((1, 4, 1024, 1024), np.float32)
    with Hostile(waits, reads=False) as server:
        error, seconds = failure(
            server.url, lambda client: client.decode(large, output="pixels"), is_async=is_async, deadline_s=0.4
        )
    assert isinstance(error, ServerTimeout), error
    assert seconds < HANGS_S / 2


@both
@pytest.mark.parametrize("name", ["a head that drips", "100 for ever"])
def test_without_a_deadline_a_head_may_take_as_long_as_a_read(name: str, is_async: bool) -> None:
    with Hostile(LATE[name]) as server:
        error, seconds = failure(server.url, decode, is_async=is_async, timeout=0.4)
    assert isinstance(error, ServerTimeout), error
    assert seconds < HANGS_S / 2


@both
def test_a_deadline_bounds_what_is_asked_about_a_server(is_async: bool) -> None:
    with Hostile(LATE["a body that drips"]) as server:
        for call in (lambda client: client.models(), lambda client: client.health()):
            error, seconds = failure(server.url, call, is_async=is_async, deadline_s=0.3)
            assert isinstance(error, ServerTimeout), error
            assert seconds < HANGS_S / 2


MULTIPART = OK + b"content-type: multipart/mixed; boundary=hybridge-part\r\n"


@both
def test_previews_without_an_end(is_async: bool) -> None:
    preview = b"".join(parts(1, png(8, 8)))
    forever = MULTIPART + b"content-length: 99999999\r\n\r\n"

    def ask(client: Any) -> Any:
        return client.decode_with_preview(LATENTS, output="pixels")

    with Hostile(drips(forever, preview)) as server:
        error, seconds = failure(server.url, ask, is_async=is_async)
    assert isinstance(error, BadAnswer), error
    assert "no end" in str(error)
    with Hostile(drips(forever + preview, b"-")) as server:
        error, seconds = failure(server.url, ask, is_async=is_async, deadline_s=0.4)
    assert isinstance(error, (ServerTimeout, BadAnswer)), error
    assert seconds < HANGS_S / 2
    huge = (
        b"--hybridge-part\r\nhybridge-part: preview\r\nhybridge-status: 200\r\ncontent-length: 99999999999\r\n\r\n"
    )
    with Hostile(floods(forever + huge, bytes(1 << 16))) as server:
        error, _ = failure(server.url, ask, is_async=is_async)
    assert isinstance(error, BadAnswer), error
    assert "larger" in str(error)


def check_wrong(behave: Behaviour, is_async: bool, **arguments: Any) -> None:
    with Hostile(behave) as server:
        tracemalloc.start()
        try:
            error, seconds = failure(
                server.url, lambda client: decode(client, **arguments), is_async=is_async, deadline_s=HANGS_S
            )
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert isinstance(error, ClientError), repr(error)
        assert not isinstance(error, ServerTimeout)
        assert server.url in str(error)
        assert str(error).isprintable()
        assert len(str(error)) < 5000
        assert seconds < HANGS_S / 2
        assert peak < MOST_BYTES
        assert len(server.requests) == 1


@both
@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers(name: str, is_async: bool) -> None:
    check_wrong(WRONG[name], is_async, output="pixels")


@both
@pytest.mark.parametrize("name", WRONG_PICTURES)
def test_wrong_pictures(name: str, is_async: bool) -> None:
    check_wrong(WRONG_PICTURES[name], is_async)


@both
@pytest.mark.parametrize("name", WRONG_VIDEOS)
def test_wrong_videos(name: str, is_async: bool) -> None:
    check_wrong(WRONG_VIDEOS[name], is_async, output="video")


@both
@pytest.mark.parametrize("behave", [chunked(200, "content-type: application/json\r\n"), in_json(b"[" * 60_000)])
def test_wrong_documents(behave: Behaviour, is_async: bool) -> None:
    with Hostile(behave) as server:
        error, _ = failure(server.url, lambda client: client.models(), is_async=is_async, deadline_s=HANGS_S)
    assert isinstance(error, BadAnswer), error


GOOD = says(200, PIXELS.headers, PIXELS.body)
GOOD_PICTURE = says(200, PICTURE, png(64, 64))


@pytest.mark.parametrize("name", [*WRONG, *WRONG_PICTURES])
def test_a_server_that_works_is_asked_instead(name: str) -> None:
    is_picture = name in WRONG_PICTURES
    behave = WRONG_PICTURES[name] if is_picture else WRONG[name]
    arguments = {} if is_picture else {"output": "pixels"}
    with Hostile(behave) as bad, Hostile(GOOD_PICTURE if is_picture else GOOD) as good:
        with Client([bad.url, good.url], retries=NEVER) as client:
            assert np.asarray(client.decode(LATENTS, **arguments)).shape[-3:] == (64, 64, 3)
        assert (len(bad.requests), len(good.requests)) == (1, 1)


def test_a_server_cannot_stop_the_others_by_its_timings() -> None:
    headers = {**PIXELS.headers, "server-timing": f"queue;dur={'9' * 400}, gpu;dur=1e999"}
    with (
        Hostile(says(200, headers, PIXELS.body)) as one,
        Hostile(GOOD) as other,
        Client([one.url, other.url]) as client,
    ):
        for _ in range(4):
            client.decode(LATENTS, output="pixels")


def test_nobody_is_left_alone_for_longer_than_a_while() -> None:
    from hybridge.client.address import Address
    from hybridge.client.load_balancer import Fleet

    now = 0.0
    fleet = Fleet([Address.parse("http://a"), Address.parse("http://b")], clock=lambda: now)
    server = fleet.lease()
    fleet.failed(server, ServerRefused("busy", status=503, retry_after_s=1e12))
    now = 601.0
    assert fleet.can_spare([other for other in fleet.servers if other is not server])


# ------------------------------------------------------------------------------------------- the key

KEY = "k3y-that-nobody-may-see"


def echoes(status: int, content_type: str, *, cut: int | None = None) -> Behaviour:
    """Tells whoever asks what they sent, of which a page shows the beginning."""

    def behave(connection: Any, stop: Any) -> None:
        text = f"you sent Authorization: Bearer {KEY} and cookie {KEY}"[:cut]
        body = b'{"error": "%s", "code": "%s"}' % (text.encode(), KEY.encode())
        if content_type == "text/html":
            body = f"<html>{text}".encode()
        head = {"content-type": content_type, "location": f"http://{KEY}.example/{KEY}?{KEY}"}
        says(status, head, body)(connection, stop)

    return behave


@both
@pytest.mark.parametrize("status", [200, 302, 400, 401, 404, 500])
@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
def test_a_key_that_is_echoed_is_not_shown(
    status: int, content_type: str, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for options in ({"api_key": KEY}, {"headers": {"x-key": KEY}}, {"headers": {"authorization": f"Bearer {KEY}"}}):
        with Hostile(echoes(status, content_type)) as server:
            error, _ = failure(server.url, decode, is_async=is_async, **options)
        assert isinstance(error, ClientError), error
        assert KEY[:8] not in f"{error!r} {error} {vars(error)}"
    for place in (f"me:{KEY}@", f"{KEY}@"):
        with Hostile(echoes(status, content_type)) as server:
            error, _ = failure(server.url.replace("//", f"//{place}"), decode, is_async=is_async)
        assert KEY[:8] not in f"{error!r} {error} {vars(error)}"
    with Hostile(echoes(status, content_type)) as server:
        error, _ = failure(f"{server.url}?key={KEY}", decode, is_async=is_async)
    assert KEY[:8] not in f"{error!r} {error} {vars(error)}"
    # httpcore writes down the headers that came, but nobody the key that went.
    sent = [line for line in caplog.messages if KEY in line and "receive_response_headers" not in line]
    assert sent == []


def test_a_remark_does_not_show_the_key() -> None:
    headers = {**PIXELS.headers, "hybridge-warning": f"{KEY} is a fine key"}
    with Hostile(says(200, headers, PIXELS.body)) as server, Client(server.url, api_key=KEY) as client:
        with pytest.warns(ServerWarning, match=r"\*\*\* is a fine key"):
            client.decode(LATENTS, output="pixels")
        assert KEY not in repr(client)


@both
def test_the_key_does_not_follow_a_redirect(is_async: bool) -> None:
    with Hostile(GOOD) as elsewhere, Hostile(says(307, {"location": elsewhere.url})) as server:
        error, _ = failure(server.url, decode, is_async=is_async, api_key=KEY)
        assert elsewhere.url in str(error)
        assert elsewhere.requests == []


# ------------------------------------------------------------------------------------------- the client


def test_closing_a_client_ends_its_calls_and_refuses_more() -> None:
    with Hostile(waits) as server:
        client = Client(server.url, timeout=HANGS_S, retries=NEVER)
        pool = ThreadPoolExecutor(1)
        call = pool.submit(client.decode, LATENTS)
        while not server.requests:
            time.sleep(0.01)
        client.close()
        assert isinstance(call.exception(timeout=HANGS_S / 2), ServerUnreachable)
        with pytest.raises(ClientError, match="closed"):
            client.decode(LATENTS)
        pool.shutdown()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nobody closed the first loop's connection
def test_an_async_client_in_a_second_event_loop(stub_url: str) -> None:
    client = AsyncClient(stub_url)
    for turn in range(2):
        loop = asyncio.new_event_loop()
        try:
            assert loop.run_until_complete(client.health()) == {"status": "ok"}
            if turn == 1:
                loop.run_until_complete(client.aclose())
        finally:
            loop.close()
    del client
    gc.collect()


def test_a_client_in_a_process_that_was_forked(stub_url: str) -> None:
    """A process, because only a fork shares sockets: the child must not answer on, nor close, its parent's."""
    code = f"""
import os, sys
from hybridge.client import Client
client = Client({stub_url!r})
assert client.health() == {{"status": "ok"}}
child = os.fork()
if not child:
    assert client.health() == {{"status": "ok"}}
    client.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
pool, = client._transport._pools.values()
kept = pool.connections[0]
assert client.health() == {{"status": "ok"}}
assert pool.connections == [kept] and kept.is_idle()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
