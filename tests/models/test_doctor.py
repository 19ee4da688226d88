"""The doctor names the cause of planted mistakes, in requests that are read and admitted as by a server."""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from latent_samples import packed, pipeline_latents, with_channels, with_frames

from hybridge.errors import HybridgeError, RequestError
from hybridge.models import CATALOGUE, Normalisation, image_layout, latent_space, look_up
from hybridge.models.doctor import bits
from hybridge.models.doctor.causes import CAUSES
from hybridge.models.doctor.numbers import examine_output
from hybridge.models.doctor.requests import examine_elements, refuse_errors
from hybridge.models.doctor.shapes import sizes_of
from hybridge.protocol import DecodeRequest, read_request
from hybridge.protocol.query import format_query
from hybridge.server.scheduling.limits import Limits
from hybridge.server.scheduling.vae_job import admit

SD, SDXL = {"scaling_factor": 0.18215}, {"scaling_factor": 0.13025}
FLUX = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
SD3 = {"scaling_factor": 1.5305, "shift_factor": 0.0609}


def scaled(channels: int = 4, picture: str = "photograph") -> np.ndarray:
    """Latents as a pipeline has them, (1, channels, 24, 24)."""
    return with_channels(pipeline_latents()[picture], channels)


def raw(model: str) -> np.ndarray:
    """The same in VAE space."""
    spec = look_up(model)
    return np.asarray(latent_space.denormalise(scaled(spec.latent_channels), spec.normalisation))


def bfloat16(array: np.ndarray) -> bytes:
    tensor = torch.from_numpy(array).to(torch.bfloat16)
    return tensor.view(torch.int16).numpy().tobytes()


def damaged(array: np.ndarray, start: bytes) -> bytes:
    """Bytes whose first ones an allocator has overwritten."""
    return start + array.tobytes()[len(start) :]


def file_of(save: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


#: The addresses of a heap and of a library, as glibc writes them into a block that is free.
POINTERS = np.array(
    [0x00007F3A1B2C3D40, 0x00007F3A1B2C3D40, 0x0000561234567890, 0x0000561234567890], "<u8"
).tobytes()


@dataclass(frozen=True)
class Sent:
    """A request to decode: the body, or an array; its shape and dtype unless they are lied about."""

    body: bytes | np.ndarray
    model: str = "sd-v1"
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    query: dict[str, Any] | None = None

    def codes(self) -> list[str | None]:
        """What a server answers: the cause of its refusal, or the codes of its warnings."""
        array = self.body if isinstance(self.body, np.ndarray) else None
        query = {
            "shape": list(self.shape or (array.shape if array is not None else ())),
            "dtype": self.dtype or (array.dtype.name if array is not None else "float32"),
            **(SD if self.query is None else self.query),
        }
        body = array.tobytes() if array is not None else bytes(self.body)
        spec = CATALOGUE[self.model]
        try:
            request = read_request(format_query(query), {"content-type": "tensor/binary"}, body, "decode")
            assert isinstance(request, DecodeRequest)
            job = admit(request, spec, Limits())
            given = request.scaling
            sent = latent_space.normalisation_of(spec, given.by, given.scaling_factor, given.shift_factor)
            found = [
                *job.findings,
                *examine_elements(request.latents, spec, sent, request.height, request.width),
            ]
            refuse_errors(found, spec)
        except HybridgeError as error:
            return [error.cause]
        return [finding.code for finding in found]


SHAPE = (1, 4, 24, 24)
MISTAKES: list[tuple[str, str, Callable[[], Sent]]] = [
    # ------------------------------------------------------------------------------------------ body
    ("wrong-length", "float16 bytes called float32", lambda: Sent(scaled().astype("f2").tobytes(), shape=SHAPE)),
    ("wrong-length", "float64", lambda: Sent(scaled().astype("f8").tobytes(), shape=SHAPE)),
    ("wrong-length", "one item of a batch", lambda: Sent(scaled().tobytes(), shape=(2, 4, 24, 24))),
    ("wrong-length", "cut on the way", lambda: Sent(scaled().tobytes()[:-100], shape=SHAPE)),
    ("file-as-tensor", ".npy", lambda: Sent(file_of(lambda f: np.save(f, scaled())), shape=SHAPE)),
    ("file-as-tensor", ".npz", lambda: Sent(file_of(lambda f: np.savez(f, scaled())), shape=SHAPE)),
    ("file-as-tensor", "torch.save", lambda: Sent(file_of(lambda f: torch.save(torch.ones(9), f)), shape=SHAPE)),
    ("file-as-tensor", "safetensors", lambda: Sent(_safetensors(scaled()), shape=SHAPE)),
    ("file-as-tensor", "PNG", lambda: Sent(b"\x89PNG\r\n\x1a\n" + b"0" * 40, shape=SHAPE)),
    ("base64-as-bytes", "base64", lambda: Sent(base64.b64encode(scaled().tobytes()), shape=SHAPE)),
    ("compressed-body", "gzip", lambda: Sent(gzip.compress(scaled().tobytes()), shape=SHAPE)),
    ("uint8-latents", "bytes", lambda: Sent((scaled() * 30 + 128).clip(0, 255).astype("u1"))),
    ("wrong-dtype", "bfloat16 as float16", lambda: Sent(bfloat16(scaled()), shape=SHAPE, dtype="float16")),
    (
        "wrong-dtype",
        "float16 as bfloat16",
        lambda: Sent(scaled().astype("f2").tobytes(), shape=SHAPE, dtype="bfloat16"),
    ),
    ("wrong-dtype", "float16 as float32", lambda: Sent(scaled().astype("f2").tobytes(), shape=(1, 4, 24, 12))),
    ("wrong-dtype", "float32 as float16", lambda: Sent(scaled().tobytes(), shape=(1, 4, 24, 48), dtype="float16")),
    (
        "wrong-dtype",
        "float32 as bfloat16",
        lambda: Sent(scaled().tobytes(), shape=(1, 4, 24, 48), dtype="bfloat16"),
    ),
    ("wrong-byte-order", "big-endian float32", lambda: Sent(scaled().astype(">f4").tobytes(), shape=SHAPE)),
    (
        "wrong-byte-order",
        "big-endian float16",
        lambda: Sent(scaled().astype(">f2").tobytes(), shape=SHAPE, dtype="float16"),
    ),
    ("freed-memory", "float32", lambda: Sent(damaged(scaled(), POINTERS), shape=SHAPE)),
    (
        "freed-memory",
        "float16",
        lambda: Sent(damaged(scaled().astype("f2"), POINTERS), shape=SHAPE, dtype="float16"),
    ),
    # ----------------------------------------------------------------------------------------- shape
    ("latents-of-another-model", "FLUX's to SD v1", lambda: Sent(scaled(16))),
    ("latents-of-another-model", "SD v1's to FLUX", lambda: Sent(scaled(4), "flux", query=FLUX)),
    ("latents-of-another-model", "without a batch axis", lambda: Sent(scaled(16)[0])),
    ("unknown-channels", "five channels", lambda: Sent(scaled(16)[:, :5])),
    ("moments-as-latents", "of SD v1", lambda: Sent(scaled(8))),
    ("pixels-as-latents", "a picture of floats", lambda: Sent(np.ones((1, 3, 64, 64), "f4"))),
    ("pixels-as-latents", "a picture of bytes", lambda: Sent(np.ones((1, 64, 64, 3), "u1"))),
    ("pixels-as-latents", "with alpha", lambda: Sent(_rgba(alpha=1.0))),
    ("pixels-as-latents", "four channels of 0 to 1", lambda: Sent(_rgba(alpha=None))),
    ("channels-last", "(B, h, w, C)", lambda: Sent(scaled(4).transpose(0, 2, 3, 1).copy())),
    ("channels-last", "(h, w, C)", lambda: Sent(scaled(4)[0].transpose(1, 2, 0).copy())),
    ("batch-and-channels-swapped", "(C, B, h, w)", lambda: Sent(scaled(4).transpose(1, 0, 2, 3).copy())),
    ("missing-axes", "flat", lambda: Sent(scaled(4).reshape(-1))),
    ("video-to-picture-model", "one frame", lambda: Sent(scaled(4)[:, :, None])),
    ("packed-without-size", "FLUX", lambda: Sent(packed(scaled(16)), "flux", query=FLUX)),
    (
        "packed-size-mismatch",
        "in latents instead of pixels",
        lambda: Sent(packed(scaled(16)), "flux", query={**FLUX, "height": 24, "width": 24}),
    ),
    (
        "packed-size-mismatch",
        "another size",
        lambda: Sent(packed(scaled(16)), "flux", query={**FLUX, "height": 256, "width": 192}),
    ),
    (
        "packed-of-another-model",
        "FLUX's to SD v1",
        lambda: Sent(packed(scaled(16)), query={**SD, "height": 192, "width": 192}),
    ),
    (
        "tokens-and-channels-swapped",
        "FLUX",
        lambda: Sent(
            packed(scaled(16)).transpose(0, 2, 1).copy(), "flux", query={**FLUX, "height": 192, "width": 192}
        ),
    ),
    ("patchified-latents", "FLUX", lambda: Sent(np.ones((1, 64, 12, 12), "f4"), "flux", query=FLUX)),
    (
        "size-cropped",
        "packed",
        lambda: Sent(packed(scaled(16)), "flux", query={**FLUX, "height": 200, "width": 200}),
    ),
    ("size-cropped", "unpacked", lambda: Sent(scaled(16), "flux", query={**FLUX, "height": 200, "width": 200})),
    (
        "frames-and-channels-swapped",
        "Wan's frames first",
        lambda: Sent(
            with_frames(scaled(16)).transpose(0, 2, 1, 3, 4).copy(), "wan-2.1", query={"do_scaling": True}
        ),
    ),
    (
        "channels-last",
        "of a video",
        lambda: Sent(
            with_frames(scaled(16)).transpose(0, 2, 3, 4, 1).copy(), "wan-2.1", query={"do_scaling": True}
        ),
    ),
    ("latents-of-another-model", "a picture's to Wan", lambda: Sent(scaled(4), "wan-2.1", query={})),
    ("video-to-picture-model", "Wan's to FLUX", lambda: Sent(with_frames(scaled(16)), "flux", query=FLUX)),
    # --------------------------------------------------------------------------------------- scaling
    ("scaling-factor-of-another-model", "SDXL's to SD v1", lambda: Sent(scaled(), query=SDXL)),
    ("scaling-factor-of-another-model", "SD v1's to SDXL", lambda: Sent(scaled(), "sdxl", query=SD)),
    ("scaling-factor-of-another-model", "SD3's to FLUX", lambda: Sent(scaled(16), "flux", query=SD3)),
    ("wrong-shift-factor", "none", lambda: Sent(scaled(16), "flux", query={"scaling_factor": 0.3611})),
    ("latents-look-normalised", "SD v1", lambda: Sent(scaled(), query={})),
    ("latents-look-normalised", "SDXL", lambda: Sent(scaled(picture="sky"), "sdxl", query={})),
    ("latents-look-normalised", "FLUX", lambda: Sent(scaled(16), "flux", query={})),
    ("latents-look-normalised", "taesd", lambda: Sent(scaled(), "taesd", query={"do_scaling": False})),
    ("latents-look-denormalised", "SD v1", lambda: Sent(raw("sd-v1"))),
    ("latents-look-denormalised", "SDXL", lambda: Sent(raw("sdxl"), "sdxl", query=SDXL)),
    ("latents-look-denormalised", "do_scaling", lambda: Sent(raw("sd-v1"), query={"do_scaling": True})),
    ("latents-look-denormalised", "FLUX", lambda: Sent(raw("flux"), "flux", query=FLUX)),
    ("unlikely-scaling", "a slip of the point", lambda: Sent(scaled(), query={"scaling_factor": 0.0018215})),
    # --------------------------------------------------------------------------------------- numbers
    (
        "height-and-width-swapped",
        "FLUX",
        lambda: Sent(packed(scaled(16)[..., :16].copy()), "flux", query={**FLUX, "height": 128, "width": 192}),
    ),
]


def _safetensors(array: np.ndarray) -> bytes:
    from safetensors.numpy import save

    return save({"latents": array})


def _rgba(alpha: float | None) -> np.ndarray:
    pixels = np.random.default_rng(0).random((1, 4, 64, 64)).astype("f4")
    if alpha is not None:
        pixels[:, 3] = alpha
    return pixels


@pytest.mark.parametrize(
    ("code", "sent"), [(c, s) for c, _, s in MISTAKES], ids=[f"{c}: {n}" for c, n, _ in MISTAKES]
)
def test_planted_mistakes_are_named(code: str, sent: Callable[[], Sent]) -> None:
    assert sent().codes() == [code]


def test_these_are_more_than_forty_and_their_codes_are_listed() -> None:
    assert len(MISTAKES) > 40
    assert {code for code, _, _ in MISTAKES} <= set(CAUSES)


@pytest.mark.parametrize(
    ("shape", "is_bytes", "model", "code"),
    [
        ((1, 64, 64, 3), False, "sd-v1", "pixels-channels-last"),
        ((1, 4, 512, 512), False, "sd-v1", "alpha-channel"),
        ((1, 512, 512, 4), True, "sd-v1", "alpha-channel"),
        ((1, 1, 512, 512), False, "sd-v1", "grey-pixels"),
        ((1, 16, 64, 64), False, "flux", "latents-as-pixels"),
        ((1, 3, 63, 64), False, "sd-v1", "side-not-a-multiple"),
        ((1, 3, 9, 64, 64), False, "sd-v1", "video-to-picture-model"),
        ((64, 64), False, "sd-v1", "not-an-image"),
    ],
)
def test_pixels_that_cannot_be_encoded_are_named(
    shape: tuple[int, ...], is_bytes: bool, model: str, code: str
) -> None:
    with pytest.raises(RequestError) as refused:
        image_layout(shape, look_up(model), is_bytes=is_bytes)
    assert refused.value.cause == code


@pytest.mark.parametrize(
    ("sample", "code"),
    [
        (torch.full((1, 3, 64, 64), -1.2), "flat-output"),
        (torch.full((1, 3, 64, 64), 0.3), "flat-output"),
        (torch.randn((1, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 9, "output-out-of-range"),
    ],
)
def test_pictures_that_show_nothing_are_named(sample: torch.Tensor, code: str) -> None:
    for array in (sample, sample.numpy()):
        (finding,) = examine_output(array, lambda: True)
        assert finding.code == code


def test_a_black_picture_of_black_latents_is_none() -> None:
    assert not [*examine_output(torch.full((1, 3, 64, 64), -1.2), lambda: False)]


def test_sizes_that_fit_packed_latents_come_with_the_likeliest_first() -> None:
    assert sizes_of(4096, 16)[0] == (1024, 1024)
    assert sizes_of(4032, 16, 1152, 896)[0] == (1152, 896)
    assert sizes_of(7, 16) == [(16, 112), (112, 16)]


def test_bits_of_short_tensors_say_nothing() -> None:
    assert bits.explain(b"\xff" * 64, "float32") is None
    assert not bits.holds_pointers(b"", "float32")


def test_a_model_with_a_mean_for_each_channel_needs_no_factor() -> None:
    from dataclasses import replace

    from hybridge.models.doctor.scaling import check_factors

    own = replace(look_up("sdxl"), normalisation=Normalisation(0.5, 0.0, (0.0,) * 4, (1.0,) * 4))
    assert not [*check_factors(own, 0.13025, None)]
