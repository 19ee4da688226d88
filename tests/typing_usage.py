"""What type checkers say of calls: mypy reads this file with ``make lint``, and nothing runs or imports it.

Each function takes values of the types that users have, and asserts the types of what they get.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type

import numpy as np
import torch
from PIL.Image import Image

import hybridge
from hybridge.client import AsyncClient, Client, Embeddings, Finished, Kind, Picture, Preview
from hybridge.client.pipelines import Connection
from hybridge.client.queue import AsyncCallQueue, CallQueue
from hybridge.engine import Engine
from hybridge.engine.exact import ExactVAE
from hybridge.lab.advisor.optimised import Optimised
from hybridge.protocol import Json, Output, VideoOptions, WireTensor

Array = np.ndarray[Any, np.dtype[Any]]
Tensor = torch.Tensor | Array | WireTensor
Pictures = Image | list[Image]
Decoded = Pictures | bytes | Tensor
Latents = Tensor | str | Path
Encodable = Tensor | Image | str | Path | bytes | bytearray


def decode(client: Client, z: torch.Tensor, array: Array, wire: WireTensor, output: Output) -> None:
    assert_type(client.decode(z), Pictures)
    assert_type(client.decode("latents.safetensors", do_scaling=True), Pictures)
    assert_type(client.decode(array, output="picture", image_format="webp", quality=90), Pictures)
    assert_type(client.decode(z, output="video"), bytes)
    client.decode_video(z, fps=24)  # type: ignore[call-overload] # an option of VideoOptions
    assert_type(client.decode_video(z, video=VideoOptions("webm", 24), quality=90), bytes)
    assert_type(client.decode_video("latents.safetensors", "film.mp4", do_scaling=True), Path)
    assert_type(client.encode_video("film.mp4", drop_frames=False), Tensor)
    assert_type(client.decode(z, output="unit", model="sdxl"), torch.Tensor)
    assert_type(client.decode(array, output="signed", quantize="float16"), Array)
    assert_type(client.decode(wire, output="pixels", height=512, width=512), WireTensor)
    assert_type(client.decode(Path("latents.npy"), output="pixels"), Tensor)
    assert_type(client.decode(z, output=output), Pictures | torch.Tensor | bytes)
    client.decode(z, image_format="gif")  # type: ignore[call-overload] # no file that a picture travels in
    client.decode(z, output="latents")  # type: ignore[call-overload] # no output
    client.decode(z, scale=1.0)  # type: ignore[call-overload] # no option
    client.decode(b"")  # type: ignore[call-overload] # latents are no bytes


def encode(client: Client, z: torch.Tensor, array: Array, picture: Image, kind: Kind) -> None:
    assert_type(client.encode(z), torch.Tensor)
    assert_type(client.encode(array, sample=True, seed=1), Array)
    assert_type(client.encode(picture), Tensor)
    assert_type(client.encode("photograph.png", kind="torch"), torch.Tensor)
    assert_type(client.encode(b"\x89PNG", kind="numpy", value_range="unit"), Array)
    assert_type(client.encode(z, kind="wire"), WireTensor)
    assert_type(client.encode(z, kind=kind), Tensor)
    client.encode(z, kind="jax")  # type: ignore[call-overload] # no kind
    client.encode(z, height=512)  # type: ignore[call-overload] # an option of decode


def preview(client: Client, z: torch.Tensor, array: Array, output: Output) -> None:
    assert_type(client.decode_with_preview(z), Iterator[Preview | Picture[Image]])
    assert_type(client.decode_with_preview(z, output="unit"), Iterator[Preview | Picture[torch.Tensor]])
    assert_type(client.decode_with_preview(array, output="unit"), Iterator[Preview | Picture[Array]])
    assert_type(client.decode_with_preview(z, output=output), Iterator[Preview | Picture[Image | bytes | Tensor]])
    for shown in client.decode_with_preview(z, model="sdxl"):
        assert_type(shown.picture if isinstance(shown, Preview) else shown.value, Image)


def queues(client: Client, z: torch.Tensor, output: Output) -> None:
    with client.decode_queue(model="sdxl", limit=2) as queue:
        assert_type(queue, CallQueue[Latents, Pictures])
        queue.put(z, tag="a lighthouse")
        queue.put(b"")  # type: ignore[arg-type] # latents are no bytes
        for finished in queue:
            assert_type(finished, Finished[Pictures])
            assert_type(finished.result(), Pictures)
    assert_type(client.decode_queue(output="video", total=3), CallQueue[Latents, bytes])
    assert_type(client.decode_queue(output="pixels", progress=True), CallQueue[Latents, Tensor])
    assert_type(client.decode_queue(output=output, order="done"), CallQueue[Latents, Decoded])
    assert_type(client.encode_queue(stop_on_error=True), CallQueue[Encodable, Tensor])
    assert_type(client.encode_queue(kind="torch"), CallQueue[Encodable, torch.Tensor])
    assert_type(client.encode_queue(kind="numpy", sample=True), CallQueue[Encodable, Array])
    assert_type(client.encode_queue(kind="wire"), CallQueue[Encodable, WireTensor])

    def show(finished: Finished[Pictures]) -> None: ...

    client.decode_queue(callback=show)
    client.encode_queue(callback=show)  # type: ignore[arg-type] # its results are no pictures
    client.decode_queue(order="last")  # type: ignore[call-overload] # no order


def others(client: Client) -> None:
    embeddings = client.encode_prompt("a lighthouse", images=["photograph.png"], max_sequence_length=256)
    assert_type(embeddings, Embeddings)
    assert_type(client.models(), list[dict[str, Any]])
    assert_type(client.health(), Json)


async def asynchronous(client: AsyncClient, z: torch.Tensor, array: Array, picture: Image, output: Output) -> None:
    assert_type(await client.decode(z), Pictures)
    assert_type(await client.decode(z, output="video"), bytes)
    assert_type(await client.decode_video(z), bytes)
    assert_type(await client.decode_video(z, Path("film.mp4"), model="wan-2.1"), Path)
    assert_type(await client.decode(z, output="unit"), torch.Tensor)
    assert_type(await client.decode(array, output="unit"), Array)
    assert_type(await client.decode(z, output=output), Pictures | torch.Tensor | bytes)
    assert_type(await client.encode(z), torch.Tensor)
    assert_type(await client.encode(picture), Tensor)
    assert_type(await client.encode(picture, kind="numpy"), Array)
    assert_type(await client.encode_prompt(["a lighthouse", "a harbour"]), Embeddings)
    assert_type(await client.health(), Json)
    assert_type(client.decode_with_preview(z), AsyncIterator[Preview | Picture[Image]])
    async with client.decode_queue(output="pixels") as queue:
        assert_type(queue, AsyncCallQueue[Latents, Tensor])
        await queue.put(z)
        async for finished in queue:
            assert_type(finished.result(), Tensor)
    assert_type(client.encode_queue(kind="torch"), AsyncCallQueue[Encodable, torch.Tensor])
    client.decode(z, output="latents")  # type: ignore[call-overload] # no output


def as_diffusers_has_them(url: str, z: torch.Tensor, array: Array, picture: Image, processor: Any) -> None:
    assert_type(hybridge.remote_decode(url, z, scaling_factor=0.18215), Image)
    assert_type(hybridge.remote_decode(url, z, processor, output_type="pt"), Pictures)
    assert_type(hybridge.remote_decode(url, z, output_type="mp4"), bytes)
    assert_type(hybridge.remote_decode(url, z, output_type="pt", return_type="pt"), torch.Tensor)
    assert_type(hybridge.remote_decode(url, array, return_type="pt", partial_postprocess=True), Array)
    assert_type(hybridge.remote_encode(url, z), torch.Tensor)
    assert_type(hybridge.remote_encode(url, picture, scaling_factor=0.18215), Tensor)
    hybridge.remote_decode(url, z, output_type="jpg")  # type: ignore[call-overload] # no output_type


def pipelines(pipe: Any, vae: torch.nn.Module, engine: Engine) -> None:
    assert_type(hybridge.exact(vae, "2GiB"), ExactVAE)
    assert_type(hybridge.exact(vae).dtype, torch.dtype)
    assert_type(hybridge.exact(vae).device, torch.device)
    assert_type(hybridge.connect(pipe, "http://gpu-box:8000"), Connection)
    assert_type(hybridge.optimize(pipe, "under-6gb"), Optimised)


if not TYPE_CHECKING:
    raise ImportError("this file is for type checkers; it does nothing when it runs")
