"""Client and AsyncClient against a server that answers as the wire says."""

from __future__ import annotations

import asyncio
import io
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from hybridge.client import AsyncClient, Client, Retry, ServerWarning
from hybridge.errors import BadAnswer, ClientError, RequestError, ServerUnreachable
from hybridge.protocol import (
    DecodeRequest,
    EncodeRequest,
    HttpResponse,
    PictureFile,
    Scaling,
    TensorAnswer,
    WireTensor,
    write_answer,
)
from hybridge.protocol.media import read_picture

LATENTS = np.linspace(-1, 1, 1 * 4 * 4 * 6, dtype=np.float32).reshape(1, 4, 4, 6)


@pytest.fixture
def client(stub: Any) -> Any:
    with Client("http://h/prefix", transport=stub.transport) as client:
        yield client


# ------------------------------------------------------------------------------------------------ decode


@pytest.mark.parametrize(("image_format", "name"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_a_picture_comes_loaded_and_says_its_format(client: Client, image_format: str, name: str) -> None:
    picture = client.decode(LATENTS, image_format=image_format)
    assert (picture.size, picture.mode, picture.format) == ((48, 32), "RGB", name)


def test_a_batch_comes_as_a_list_one_by_one(client: Client, stub: Any) -> None:
    batch = np.concatenate([LATENTS, -LATENTS, 0 * LATENTS])
    pictures = client.decode(batch)
    assert [seen.request.latents.shape for seen in stub.seen] == [(1, 4, 4, 6)] * 3
    pixels = client.decode(batch, output="pixels")
    assert [np.asarray(picture).tolist() for picture in pictures] == pixels.tolist()


def test_a_packed_batch_comes_as_a_list_too(client: Client, stub: Any) -> None:
    packed = np.zeros((2, 6, 64), np.float32)
    assert len(client.decode(packed, height=32, width=48)) == 2
    assert stub.seen[0].request.height == 32


def test_three_axes_without_a_size_are_left_to_the_server(client: Client, stub: Any) -> None:
    stub.first.append(write_answer(client.send(DecodeRequest(WireTensor.from_numpy(LATENTS))).answer))
    assert client.decode(LATENTS[0]).size == (48, 32)
    assert stub.seen[-1].request.latents.shape == (4, 4, 6)


@pytest.mark.parametrize(
    ("output", "shape", "low", "high"),
    [("unit", (1, 3, 32, 48), 0, 1), ("signed", (1, 3, 32, 48), -1, 1), ("pixels", (1, 32, 48, 3), 0, 255)],
)
def test_tensors(client: Client, output: Any, shape: tuple[int, ...], low: int, high: int) -> None:
    tensor = client.decode(LATENTS, output=output)
    assert tensor.shape == shape
    assert low <= tensor.min() < tensor.max() <= high
    assert tensor.dtype == (np.uint8 if output == "pixels" else np.float32)
    tensor += 1  # a caller's own array, to be written to


def test_a_video_is_bytes(client: Client) -> None:
    assert b"ftyp" in client.decode(LATENTS[:, :, None], output="video")


def test_tensors_come_back_as_the_kind_that_went(client: Client) -> None:
    import torch

    wire = WireTensor.from_numpy(LATENTS)
    assert isinstance(client.decode(wire, output="signed"), WireTensor)
    signed = client.decode(torch.from_numpy(LATENTS), output="signed")
    assert isinstance(signed, torch.Tensor)
    assert np.array_equal(signed.numpy(), client.decode(LATENTS, output="signed"))


def test_torch_in_any_layout_and_dtype(client: Client, stub: Any) -> None:
    import torch

    latents = torch.from_numpy(LATENTS)
    strided = latents.to(memory_format=torch.channels_last).requires_grad_()
    assert torch.equal(client.decode(strided, output="signed"), client.decode(latents, output="signed"))
    flipped = latents.transpose(2, 3)
    assert client.decode(flipped, output="signed").shape == (1, 3, 48, 32)
    assert stub.seen[-1].body == flipped.contiguous().numpy().tobytes()
    brain = latents.to(torch.bfloat16)
    answer = client.decode(brain, output="signed")
    assert answer.dtype == torch.bfloat16
    assert torch.equal(answer[:, :, ::8, ::8], brain[:, :3])
    assert torch.equal(client.decode(latents.double(), output="signed"), client.decode(latents, output="signed"))


def test_a_file_of_latents(client: Client, stub: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path, marker = tmp_path / "x.latent", torch.tensor([])
    save_file({"latent_tensor": torch.from_numpy(LATENTS), "latent_format_version_0": marker}, path)
    assert torch.equal(
        client.decode(path, output="signed"), client.decode(torch.from_numpy(LATENTS), output="signed")
    )
    assert stub.seen[-2].request.scaling == Scaling()
    client.decode(str(path), output="signed", do_scaling=True)
    assert stub.seen[-1].request.scaling == Scaling("model")
    np.save(tmp_path / "x.npy", LATENTS)
    with pytest.raises(RequestError, match=r"does not say in which space.*do_scaling=False for"):
        client.decode(tmp_path / "x.npy")
    client.decode(tmp_path / "x.npy", output="signed", do_scaling=False)
    assert stub.seen[-1].request.latents.to_numpy().tolist() == LATENTS.tolist()
    with pytest.raises(FileNotFoundError):
        client.decode("nothing.latent")


def test_a_file_of_latents_is_decoded_by_the_model_that_it_names(client: Client, stub: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    for told, asked, called in (
        ("sdxl", None, "sdxl"),
        ("mine=~/vae:vae", None, "mine"),
        ("sdxl", "flux", "flux"),
    ):
        save_file({"latents": torch.from_numpy(LATENTS)}, path, {"model": told, "space": "vae"})
        client.decode(path, output="signed", model=asked)
        assert stub.seen[-1].path == f"/prefix/v1/{called}/decode"


def test_pictures_from_files_are_sent_as_they_are_shown(client: Client, stub: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # to be rotated clockwise
    for ending in ("jpg", "png", "webp", "tiff", "avif"):
        path = tmp_path / f"turned.{ending}"
        Image.new("RGB", (32, 16), "red").save(path, exif=exif)
        with Image.open(path) as opened:
            client.encode(opened)
            assert read_picture(stub.seen[-1].request.image.data, max_pixels=10**6).shape == (1, 32, 16, 3)
            client.encode_video([opened])
            assert stub.seen[-1].request.image.shape == (1, 32, 16, 3)
            if ending != "tiff":  # which Pillow has rotated by now
                client.encode(opened.rotate(270, expand=True))  # by the caller
                assert read_picture(stub.seen[-1].request.image.data, max_pixels=10**6).shape == (1, 32, 16, 3)
        client.encode(path)
        assert read_picture(stub.seen[-1].request.image.data, max_pixels=10**6).shape == (1, 32, 16, 3)


@pytest.mark.parametrize("ending", ["gif", "tiff", "avif"])
def test_of_an_animation_the_first_frame_is_sent_with_a_warning(
    client: Client, ending: str, tmp_path: Path
) -> None:
    path, frames = tmp_path / f"a.{ending}", [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.warns(ServerWarning, match="of the animation the first frame was read"):
        client.encode(path)


def test_numpy_of_any_layout_and_bfloat16_answers(client: Client, stub: Any) -> None:
    client.decode(np.asfortranarray(LATENTS).astype(np.float64), output="signed")
    assert stub.seen[-1].request.latents.to_numpy().tolist() == LATENTS.tolist()
    stub.first.append(write_answer(TensorAnswer(WireTensor("bfloat16", (1, 3, 4, 6), b"\x80\x3f" * 72))))
    assert client.decode(LATENTS, output="signed").tolist() == np.ones((1, 3, 4, 6)).tolist()


@pytest.mark.parametrize(
    ("arguments", "scaling"),
    [
        ({}, Scaling()),
        ({"scaling_factor": 0.5}, Scaling("given", 0.5)),
        ({"scaling_factor": 0.5, "shift_factor": 0.1}, Scaling("given", 0.5, 0.1)),
        ({"do_scaling": True}, Scaling("model")),
        ({"do_scaling": True, "shift_factor": 0.1}, Scaling("model", None, 0.1)),
        ({"do_scaling": True, "scaling_factor": 0.5}, Scaling("given", 0.5)),
        ({"do_scaling": False, "scaling_factor": 0.5}, Scaling()),
    ],
)
def test_scaling(client: Client, stub: Any, arguments: dict[str, Any], scaling: Scaling) -> None:
    client.decode(LATENTS, **arguments)
    client.encode(np.zeros((8, 8, 3), np.uint8), **arguments)
    assert [seen.request.scaling for seen in stub.seen] == [scaling, scaling]


def test_quality_travels(client: Client, stub: Any) -> None:
    client.decode(LATENTS, image_format="jpg", quality=40)
    assert (stub.seen[0].request.picture_format, stub.seen[0].request.quality) == ("jpeg", 40)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"output": "pil"}, "signed"),
        ({"image_format": "gif"}, "webp"),
        ({"height": 32}, "width=None"),
        ({"shift_factor": 0.1}, "scaling_factor"),
    ],
)
def test_arguments_that_make_no_sense_are_not_sent(
    client: Client, stub: Any, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        client.decode(LATENTS, **arguments)
    assert stub.seen == []


def test_lists_are_not_tensors(client: Client) -> None:
    with pytest.raises(RequestError, match="saw list"):
        client.decode([[1.0]])


# ------------------------------------------------------------------------------------------------ encode


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
    return Image.fromarray(pixels).convert(mode)


def as_file(format_name: str) -> bytes:
    file = io.BytesIO()
    picture().save(file, format_name)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_a_picture_goes_as_png_in_its_mode(client: Client, stub: Any, mode: str) -> None:
    client.encode(picture(mode))
    sent = stub.seen[0].request.image
    assert isinstance(sent, PictureFile)
    assert Image.open(io.BytesIO(sent.data)).mode == mode


def test_modes_that_png_lacks_become_rgb(client: Client, stub: Any) -> None:
    client.encode(picture("CMYK"))
    assert Image.open(io.BytesIO(stub.seen[0].body)).mode == "RGB"


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP"])
def test_files_go_as_they_are(client: Client, stub: Any, tmp_path: Path, format_name: str) -> None:
    data = as_file(format_name)
    path = tmp_path / "picture"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        client.encode(source)
    assert [seen.body for seen in stub.seen] == [data] * 3


def test_other_files_go_as_png(client: Client, stub: Any) -> None:
    assert client.encode(as_file("BMP")).shape == client.encode(picture()).shape
    assert stub.seen[0].body == stub.seen[1].body


def test_what_is_no_picture_is_not_sent(client: Client) -> None:
    with pytest.raises(RequestError, match="not a picture"):
        client.encode(b"a letter")
    with pytest.raises(FileNotFoundError):
        client.encode("nowhere.png")


def test_arrays_are_pictures(client: Client, stub: Any) -> None:
    pixels = np.asarray(picture())
    alone, batch = client.encode(pixels), client.encode(np.stack([pixels, pixels]))
    assert isinstance(alone, np.ndarray)
    assert (alone.shape, batch.shape) == ((1, 4, 2, 3), (2, 4, 2, 3))
    assert np.array_equal(alone, client.encode(picture(), kind="numpy"))
    floats = (pixels / 255).transpose(2, 0, 1)[None]
    assert np.allclose(client.encode(floats, value_range="unit"), alone)
    assert stub.seen[-1].request.value_range == "unit"


def test_latents_have_the_kind_that_was_asked_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert isinstance(client.encode(picture()), torch.Tensor)
    assert isinstance(client.encode(torch.zeros(1, 3, 8, 8)), torch.Tensor)
    assert isinstance(client.encode(picture(), kind="wire"), WireTensor)
    with pytest.raises(RequestError, match="unknown kind of tensors: saw 'jax', expected torch, numpy, wire"):
        client.encode(picture(), kind="jax")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: "here" if name == "numpy" else None)
    assert isinstance(client.encode(picture()), np.ndarray)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert isinstance(client.encode(picture()), WireTensor)


def test_a_draw_has_a_seed(client: Client, stub: Any) -> None:
    client.encode(picture(), sample=True, seed=7)
    assert stub.seen[0].request == EncodeRequest(stub.seen[0].request.image, sample=True, seed=7)
    with pytest.raises(RequestError, match="sample=True"):
        client.encode(picture(), seed=7)


# ---------------------------------------------------------------------------------- the calls themselves


@pytest.mark.parametrize(
    ("model", "decoded", "encoded"),
    [
        (None, "/prefix/", "/prefix/"),
        ("sd-v1", "/prefix/v1/sd-v1/decode", "/prefix/v1/sd-v1/encode"),
        ("a/b c", "/prefix/v1/a%2Fb%20c/decode", "/prefix/v1/a%2Fb%20c/encode"),
    ],
)
def test_where_calls_go(client: Client, stub: Any, model: str | None, decoded: str, encoded: str) -> None:
    client.decode(LATENTS, model=model)
    client.encode(picture(), model=model)
    assert [seen.path for seen in stub.seen] == [decoded, encoded]


def test_credentials_and_headers_go_with_every_call(stub: Any) -> None:
    address = "http://me:s3cret@h/p?key=k3y"
    with Client(address, headers={"x-team": "blue"}, transport=stub.transport) as client:
        client.models()
        client.decode(LATENTS, model="sd-v1")
        assert repr(client) == "Client('http://h/p')"
    for seen in stub.seen:
        assert seen.headers["authorization"] == "Basic bWU6czNjcmV0"
        assert seen.headers["x-team"] == "blue"
        assert seen.query.startswith("key=k3y")


def test_health_is_asked_once_for_programs_that_poll() -> None:
    waits: list[float] = []
    seen: list[str] = []

    def fail(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        raise httpx.ConnectError("refused", request=request)

    with Client("http://box", transport=httpx.MockTransport(fail), sleep=waits.append) as client:
        with pytest.raises(ServerUnreachable):
            client.health()
        assert (seen, waits) == (["/health"], [])
        with pytest.raises(ServerUnreachable):
            client.models(deadline_s=0.01)
    assert (seen, waits) == (["/health", "/v1/models"], [])


def test_models_and_health(client: Client, stub: Any) -> None:
    assert client.models() == [{"name": "sd-v1"}]
    assert client.health() == {"status": "ok"}
    stub.first.append(HttpResponse(200, {"content-type": "text/plain; charset=utf-8"}, b"Ok"))
    assert client.health() == "Ok"
    assert [seen.path for seen in stub.seen] == ["/prefix/v1/models", "/prefix/health", "/prefix/health"]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html", b"<html>"),
        ("text/plain", b"Ok"),
        ("application/json", b'{"a": 1}'),
        ("application/json", b"[]"),
    ],
)
def test_what_does_not_list_models_is_no_server(client: Client, stub: Any, content_type: str, body: bytes) -> None:
    stub.first.append(HttpResponse(200, {"content-type": content_type}, body))
    with pytest.raises(BadAnswer, match="http://h/prefix"):
        client.models()


def test_a_reply_says_how_the_answer_came(stub: Any) -> None:
    stub.headers = {
        "hybridge-model": "sd-v1",
        "hybridge-inferred": "model from 4 channels",
        "server-timing": 'queue;dur=1.5, decode;desc="the forward";dur=350, cached, odd;dur=soon',
    }
    with Client("http://h", transport=stub.transport) as client:
        reply = client.send(DecodeRequest(WireTensor.from_numpy(LATENTS), output="pixels"), model="sd-v1")
    assert (reply.model, reply.inferred, reply.warning) == ("sd-v1", "model from 4 channels", None)
    assert reply.timings_ms == {"queue": 1.5, "decode": 350.0}
    assert (reply.bytes_up, reply.bytes_down) == (LATENTS.nbytes, 32 * 48 * 3)
    assert 0 <= reply.seconds < 5
    assert reply.tensor().shape == (1, 32, 48, 3)
    with pytest.raises(BadAnswer, match="expected a file"):
        reply.picture()


def test_a_file_is_no_tensor_and_a_broken_one_no_picture(client: Client, stub: Any) -> None:
    stub.first.append(HttpResponse(200, {"content-type": "image/png"}, as_file("PNG")))
    with pytest.raises(BadAnswer, match="http://h/prefix: the server sent a file"):
        client.decode(LATENTS, output="signed")
    stub.first.append(HttpResponse(200, {"content-type": "image/png"}, as_file("PNG")[:-40]))
    with pytest.raises(BadAnswer, match="cannot be read"):
        client.decode(LATENTS)


def test_a_remark_becomes_a_warning_at_the_callers_line(stub: Any) -> None:
    stub.headers = {"hybridge-warning": "latents look unscaled"}
    with Client("http://h", transport=stub.transport) as client:
        with pytest.warns(ServerWarning, match="http://h: latents look unscaled") as caught:
            client.decode(LATENTS)
        assert caught[0].filename == __file__

    async def decode() -> None:
        async with AsyncClient("http://h", transport=stub.transport) as client:
            await client.decode(LATENTS)

    with pytest.warns(ServerWarning, match="unscaled") as caught:
        asyncio.run(decode())
    assert caught[0].filename == __file__


def test_an_endpoint_is_used_as_it_is(client: Client, stub: Any) -> None:
    request = DecodeRequest(WireTensor.from_numpy(LATENTS))
    client.send(request, endpoint="http://h/any/where?key=7")
    assert stub.seen[0].path == "/any/where"
    assert stub.seen[0].query.startswith("key=7&")
    with pytest.raises(ClientError, match="another server"):
        client.send(request, endpoint="http://elsewhere/")
    with pytest.raises(RequestError, match="two destinations"):
        client.send(request, endpoint="http://h/", model="sd-v1")


def test_timeouts() -> None:
    def of(**arguments: Any) -> httpx.Timeout:
        with Client("http://h", **arguments) as client:
            return client._timeout

    assert of() == httpx.Timeout(300, connect=10, pool=None)
    assert of(timeout=2) == httpx.Timeout(2, connect=2, pool=None)
    assert of(timeout=None) == httpx.Timeout(None, connect=10)
    assert of(timeout=httpx.Timeout(5)) == httpx.Timeout(5)


def test_the_certificate_store_is_read_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[object] = []
    create = ssl.create_default_context
    monkeypatch.setattr("ssl.create_default_context", lambda **options: reads.append(options) or create(**options))
    monkeypatch.setattr("hybridge.client.proxies.getproxies", dict)
    for url, expected in (("http://h", 0), ("https://h", 1)):
        Client(url).close()
        assert len(reads) == expected


# ------------------------------------------------------------------------------------- blocking and async


BUSY = HttpResponse(429, {"content-type": "application/json", "retry-after": "2"}, b'{"error": "full"}')

CALLS: dict[str, Callable[[Any], Any]] = {
    "picture": lambda client: client.decode(LATENTS, model="sd-v1", scaling_factor=0.5),
    "batch": lambda client: client.decode(np.concatenate([LATENTS, LATENTS])),
    "tensor": lambda client: client.decode(LATENTS, output="signed"),
    "encode": lambda client: client.encode(picture(), sample=True, seed=3, kind="numpy"),
    "send": lambda client: client.send(EncodeRequest(PictureFile(as_file("PNG")))),
    "models": lambda client: client.models(),
    "health": lambda client: client.health(),
    "refused": lambda client: client.decode(LATENTS, quality=1000),
    "not sent": lambda client: client.decode(LATENTS, output="pil"),
}


@pytest.mark.parametrize("name", CALLS)
def test_both_clients_say_and_get_the_same(stub: Any, name: str) -> None:
    def outcome(result: Any) -> Any:
        if isinstance(result, list) and isinstance(result[0], Image.Image):
            return [np.asarray(item).tolist() for item in result]
        return np.asarray(result).tolist() if isinstance(result, (Image.Image, np.ndarray)) else result

    def blocking() -> Any:
        with Client("http://h", transport=stub.transport, retries=calm, sleep=waits.append) as client:
            return CALLS[name](client)

    async def awaited() -> Any:
        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        async with AsyncClient("http://h", transport=stub.transport, retries=calm, sleep=sleep) as client:
            assert repr(client) == "AsyncClient('http://h')"
            return await CALLS[name](client)

    calm = Retry(random=lambda: 0.0)
    records = []
    for drive in (blocking, lambda: asyncio.run(awaited())):
        waits: list[float] = []
        stub.first, stub.seen = [BUSY, BUSY], []
        try:
            result = outcome(drive())
        except (RequestError, ClientError) as error:
            result = (type(error), str(error))
        result = result.answer if name == "send" else result
        records.append((result, waits, [(seen.path, seen.query, seen.body) for seen in stub.seen]))
    assert records[0] == records[1]
    assert records[0][1] == ([] if name in ("not sent", "health") else [2.0, 2.0])


def test_async_calls_overlap(stub: Any) -> None:
    """Two calls that each wait for the other to have arrived."""
    arrived = asyncio.Event()

    async def handle(request: httpx.Request) -> httpx.Response:
        response = stub.handle(request)
        if len(stub.seen) == 2:
            arrived.set()
        await arrived.wait()
        return response

    async def both() -> list[Any]:
        async with AsyncClient("http://h", transport=httpx.MockTransport(handle)) as client:
            return await asyncio.gather(client.decode(LATENTS), client.encode(picture()))

    assert len(asyncio.run(asyncio.wait_for(both(), 5))) == 2


# ---------------------------------------------------------------------------------------------- imports


def test_importing_and_asking_loads_no_framework() -> None:
    code = """
import sys, httpx
from hybridge.client import Client
from hybridge.protocol import TensorAnswer, WireTensor, write_answer
tensor = WireTensor("uint8", (1, 1, 1, 3), b"rgb")
latents = WireTensor("float32", (1, 1, 1, 1), bytes(4))
reply = write_answer(TensorAnswer(tensor))
handle = lambda request: httpx.Response(200, headers=reply.headers, content=reply.body)
client = Client("http://h", transport=httpx.MockTransport(handle))
assert client.decode(latents, output="pixels") == tensor
reply = write_answer(TensorAnswer(latents))
assert client.encode(b"\\xff\\xd8\\xff a jpeg", kind="wire") == latents
print(sorted({"torch", "numpy", "PIL", "diffusers"} & set(sys.modules)))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
