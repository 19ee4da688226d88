"""remote_decode and remote_encode beside diffusers' own, on the same server: the same question, the same answer."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hybridge.client import Client, remote_decode, remote_encode
from hybridge.errors import ClientError, RequestError, ServerRefused
from hybridge.protocol import HttpResponse

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def diffusers() -> SimpleNamespace:
    """The functions to be like, and the processors to be used with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        remote = pytest.importorskip("diffusers.utils.remote_utils")
        from diffusers.image_processor import VaeImageProcessor
        from diffusers.video_processor import VideoProcessor
    return SimpleNamespace(
        decode=quietly(remote.remote_decode),
        encode=quietly(remote.remote_encode),
        raw_decode=remote.remote_decode,
        raw_encode=remote.remote_encode,
        processors={None: None, "image": VaeImageProcessor(), "video": VideoProcessor()},
    )


def quietly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without the warning that ``do_scaling`` will go away."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return function(*args, **kwargs)

    return call


def latents(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(13)).to(dtype)


ONE, TWO, VIDEO, PACKED = latents(1, 4, 4, 6), latents(2, 4, 4, 6), latents(1, 4, 3, 4, 6), latents(1, 6, 64)
FLUX = {"height": 32, "width": 48}


def same(ours: Any, theirs: Any) -> None:
    """The same pixels, type and format."""
    assert type(ours) is type(theirs)
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            same(our, their)
    elif isinstance(ours, Image.Image):
        assert (ours.mode, ours.size, ours.format) == (theirs.mode, theirs.size, theirs.format)
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


# Every row of the response matrix: (latents, processor, arguments).
MATRIX = {
    "jpg": (ONE, None, {}),
    "png": (ONE, None, {"image_format": "png"}),
    "png, partial": (ONE, None, {"image_format": "png", "partial_postprocess": True}),
    "first of a batch": (TWO, None, {"image_format": "png"}),
    "pil for a processor": (ONE, "image", {}),
    "pil for a processor, batch": (TWO, "image", {"partial_postprocess": True}),
    "pil for a processor, bfloat16": (ONE.bfloat16(), "image", {}),
    "pil for a processor, tensor": (ONE, "image", {"return_type": "pt"}),
    "pil for a processor, video": (VIDEO, "video", {}),
    "pt for a processor": (ONE, "image", {"output_type": "pt"}),
    "pt for a processor, batch": (TWO, "image", {"output_type": "pt"}),
    "pt for a processor, float16": (ONE.half(), "image", {"output_type": "pt"}),
    "pt for a processor, bfloat16": (ONE.bfloat16(), "image", {"output_type": "pt"}),
    "pt for a processor, video": (VIDEO, "video", {"output_type": "pt"}),
    "pt for a processor, tensor": (ONE, "image", {"output_type": "pt", "return_type": "pt"}),
    "pt": (ONE, None, {"output_type": "pt", "return_type": "pt"}),
    "pt, bfloat16": (ONE.bfloat16(), None, {"output_type": "pt", "return_type": "pt"}),
    "pt, video": (VIDEO, None, {"output_type": "pt", "return_type": "pt"}),
    "partial": (ONE, None, {"output_type": "pt", "partial_postprocess": True}),
    "partial, batch": (TWO, None, {"output_type": "pt", "partial_postprocess": True}),
    "partial, video": (VIDEO, "video", {"output_type": "pt", "partial_postprocess": True}),
    "partial, tensor": (TWO, None, {"output_type": "pt", "partial_postprocess": True, "return_type": "pt"}),
    "mp4": (VIDEO, None, {"output_type": "mp4", "return_type": "mp4"}),
    "packed": (PACKED, None, {"image_format": "png", **FLUX}),
    "packed, tensor": (PACKED, None, {"output_type": "pt", "return_type": "pt", **FLUX}),
    "unpacked with a size": (ONE, None, {"image_format": "png", **FLUX}),
    "half a size": (ONE, None, {"image_format": "png", "height": 32}),
    "scaled": (ONE, None, {"image_format": "png", "scaling_factor": 0.18215}),
    "scaled and shifted": (ONE, None, {"image_format": "png", "scaling_factor": 0.36, "shift_factor": 0.12}),
    "as the model does, shifted": (ONE, None, {"image_format": "png", "shift_factor": 0.12}),
    "not scaled": (ONE, None, {"image_format": "png", "do_scaling": False, "scaling_factor": 0.5}),
    "not scaled, said with None": (ONE, None, {"image_format": "png", "do_scaling": None}),
    "base64, long gone": (ONE, None, {"input_tensor_type": "base64", "output_tensor_type": "base64"}),
}


@pytest.mark.parametrize("row", MATRIX)
def test_decoding_is_as_diffusers_does_it(diffusers: Any, stub: Any, stub_url: str, row: str) -> None:
    tensor, processor_name, arguments = MATRIX[row]
    processor = diffusers.processors[processor_name]
    endpoint = f"{stub_url}/v1/any/decode"
    theirs = diffusers.decode(endpoint, tensor, processor, **arguments)
    ours = remote_decode(endpoint, tensor, processor, **arguments)
    same(ours, theirs)
    asked, as_asked = (seen.request for seen in stub.seen)
    assert asked == as_asked


@pytest.mark.parametrize("image", [Image.new("RGB", (16, 24), "teal"), latents(1, 3, 8, 16)], ids=["PIL", "torch"])
@pytest.mark.parametrize("arguments", [{}, {"scaling_factor": 0.5}, {"scaling_factor": 0.5, "shift_factor": 0.1}])
def test_encoding_is_as_diffusers_does_it(
    diffusers: Any, stub: Any, stub_url: str, image: Any, arguments: dict[str, Any]
) -> None:
    endpoint = f"{stub_url}/v1/any/encode"
    same(remote_encode(endpoint, image, **arguments), diffusers.encode(endpoint, image, **arguments))
    asked, as_asked = (seen.request for seen in stub.seen)
    assert asked.scaling == as_asked.scaling


def test_the_signatures_are_diffusers_with_more_at_the_end(diffusers: Any) -> None:
    for ours, theirs in ((remote_decode, diffusers.raw_decode), (remote_encode, diffusers.raw_encode)):
        expected = [(p.name, p.kind, p.default) for p in inspect.signature(theirs).parameters.values()]
        parameters = [(p.name, p.kind, p.default) for p in inspect.signature(ours).parameters.values()]
        assert parameters[: len(expected)] == expected
        assert all(kind is inspect.Parameter.KEYWORD_ONLY for _, kind, _ in parameters[len(expected) :])


# ------------------------------------------------------------------------------ where diffusers' own fail


def test_an_mp4_is_bytes_whatever_return_type_says(diffusers: Any, stub_url: str) -> None:
    with pytest.raises(UnboundLocalError):
        diffusers.decode(stub_url, VIDEO, output_type="mp4")
    assert b"ftyp" in remote_decode(stub_url, VIDEO, output_type="mp4")


def test_a_tensor_from_pil_without_a_processor(diffusers: Any, stub_url: str) -> None:
    with pytest.raises(UnboundLocalError):
        diffusers.decode(stub_url, ONE, return_type="pt")
    with_one = diffusers.decode(stub_url, ONE, diffusers.processors["image"], return_type="pt")
    same(remote_decode(stub_url, ONE, return_type="pt"), with_one)


def test_pictures_from_pt_without_a_processor(diffusers: Any, stub_url: str) -> None:
    with pytest.raises(ValueError, match="processor"):
        diffusers.decode(stub_url, ONE, output_type="pt")
    partial = diffusers.decode(stub_url, TWO, output_type="pt", partial_postprocess=True)
    same(remote_decode(stub_url, TWO, output_type="pt"), partial)


def test_non_contiguous_latents_arrive_in_order(stub: Any, stub_url: str) -> None:
    strided = ONE.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not strided.is_contiguous()
    remote_decode(stub_url, strided)
    assert stub.seen[0].body == ONE.numpy().tobytes()


def test_numpy_comes_and_goes(stub_url: str) -> None:
    signed = remote_decode(stub_url, ONE.numpy(), output_type="pt", return_type="pt")
    assert isinstance(signed, np.ndarray)
    assert remote_decode(stub_url, ONE.numpy()).size == (48, 32)
    assert isinstance(remote_encode(stub_url, np.zeros((8, 8, 3), np.uint8)), np.ndarray)


def test_numpy_with_a_processor(diffusers: Any, stub_url: str) -> None:
    processor = diffusers.processors["image"]
    ours = remote_decode(stub_url, ONE.numpy(), processor, output_type="pt")
    same(ours, diffusers.decode(stub_url, ONE, processor, output_type="pt"))


# ------------------------------------------------------------------------------------- the rest of the way


def test_packed_latents_need_a_size_as_in_diffusers(diffusers: Any, stub: Any, stub_url: str) -> None:
    for function in (diffusers.decode, remote_decode):
        with pytest.raises(ValueError, match="`height` and `width` required for packed latents"):
            function(stub_url, PACKED)
    assert stub.seen == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"output_type": "jpg"}, "output_type"),
        ({"return_type": "np"}, "return_type"),
        ({"return_type": "mp4"}, "needs"),
    ],
)
def test_types_that_do_not_exist_or_fit(stub: Any, stub_url: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        remote_decode(stub_url, ONE, **arguments)
    with pytest.raises(RequestError, match="image_format"):
        remote_decode(stub_url, ONE, image_format="tiff")
    assert stub.seen == []


def test_the_endpoint_is_any_url(stub: Any, stub_url: str) -> None:
    remote_decode(f"{stub_url.replace('//', '//me:s3cret@')}/any/where?key=k3y", ONE)
    seen = stub.seen[0]
    assert (seen.path, seen.headers["authorization"]) == ("/any/where", "Basic bWU6czNjcmV0")
    assert seen.query.startswith("key=k3y&shape=1&shape=4")


def test_a_client_lends_its_connection_and_key(stub: Any, stub_url: str) -> None:
    with Client(stub_url, api_key="k3y") as client:
        remote_decode(f"{stub_url}/a/decode", ONE, client=client)
        remote_encode(f"{stub_url}/a/encode", ONE[:, :3].repeat(1, 1, 2, 2), client=client)
        with pytest.raises(ClientError, match="another server"):
            remote_decode("http://elsewhere/", ONE, client=client)
        assert client.models()
    assert {seen.headers["authorization"] for seen in stub.seen} == {"Bearer k3y"}


def test_refusals_are_explained(stub: Any, stub_url: str) -> None:
    stub.first.append(HttpResponse(400, {"content-type": "application/json"}, b'{"error": "four channels"}'))
    with pytest.raises(ServerRefused, match="four channels") as caught:
        remote_decode(stub_url, ONE)
    assert isinstance(caught.value, RuntimeError), "`except RuntimeError`, written for diffusers, goes on working"
