"""The model behind a server that is not ours, and the engine without any: what runs in their processes.

Every rival gets the same module, on the same device and in the same dtype.  It writes pictures with Pillow, in our
settings where we do so too; our PNG takes an eighth of the time of its fastest.
"""

from __future__ import annotations

import io
import random
import time
import zlib
from dataclasses import asdict
from typing import Any

import safetensors.torch
import torch

from ...engine import Engine, EngineOptions, keep_pieces, loading, reference, resolve, to_pixels
from ...engine.options import choose_device, choose_dtype
from ..harness.typed import parse
from ..harness.worker_process import Say
from ..vae_bench.cases import Case
from ..vae_bench.subject import source
from .cases import Load
from .load_generator import OK, Sample

#: The name of the tensor in the safetensors that rivals are sent.
_LATENTS = "latents"


def latents(model: str, size: int, seed: int) -> torch.Tensor:
    """Seeded noise as float32 (1, C, h, w) in the VAE's own space."""
    return source(Case(model, "decode", size, "float32", seed=seed), torch.float32)


def packed(model: str, size: int, seed: int) -> bytes:
    """Those latents as safetensors, which say their own shape and dtype."""
    data: bytes = safetensors.torch.save({_LATENTS: latents(model, size, seed)})
    return data


class Module:
    """diffusers' own module and its own decode.

    Args:
        model: A name of the catalogue, or one with its place.
        threads: Of torch, on a CPU; None leaves their number as it is.

    Raises:
        ModelUnavailable: when the weights cannot be had.
    """

    def __init__(self, model: str, picture_format: str, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        spec = resolve(model)
        self._device = choose_device("auto").value
        self._dtype = choose_dtype("auto", spec, self._device).value
        self._module = loading.load(spec, self._dtype, self._device)
        self._format = picture_format

    @torch.inference_mode()
    def decode(self, body: bytes) -> tuple[Any, float]:
        """Safetensors → (uint8 (H, W, 3) as an array, milliseconds)."""
        begun = time.perf_counter()
        given = safetensors.torch.load(body)[_LATENTS].to(self._device, self._dtype)
        pixels = to_pixels(reference.decode(self._module, given)).cpu().numpy()[0]
        return pixels, 1e3 * (time.perf_counter() - begun)

    def write(self, decoded: tuple[Any, float]) -> tuple[bytes, dict[str, str]]:
        """A picture file and headers with the time of both stages."""
        from PIL import Image

        begun = time.perf_counter()
        file = io.BytesIO()
        settings: dict[str, dict[str, Any]] = {
            "png": {"compress_level": 1, "compress_type": zlib.Z_RLE},
            "jpeg": {"quality": 95, "subsampling": 0},
            "webp": {"lossless": True, "quality": 0, "method": 1},
        }
        Image.fromarray(decoded[0]).save(file, self._format, **settings[self._format])
        encode_ms = 1e3 * (time.perf_counter() - begun)
        return file.getvalue(), {"server-timing": f"device;dur={decoded[1]:.1f}, encode;dur={encode_ms:.1f}"}


def run_engine(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """The engine alone: pictures one after another, from latents to pixels, with no HTTP and no file."""
    say("loading the engine")
    keep_pieces()  # as `hybridge serve` does
    load = parse(Load, job["load"])
    engines = {model: Engine.load(resolve(model), EngineOptions()) for model in {kind.model for kind in load.kinds}}
    given = {kind: latents(kind.model, kind.size, job["seed"]) for kind in load.kinds}
    say("warming up")
    for kind in load.kinds:
        to_pixels(engines[kind.model].decode(given[kind])).cpu()
    say("decoding")
    draw = random.Random(job["seed"])  # noqa: S311 - traffic, not secrets
    samples: list[dict[str, Any]] = []
    begun = time.perf_counter()
    while len(samples) < job["requests"]:
        kind = draw.choices(load.kinds, load.weights)[0]
        at = time.perf_counter()
        if job["seconds"] is not None and at - begun >= job["seconds"]:
            break
        to_pixels(engines[kind.model].decode(given[kind])).cpu()
        wall_s = time.perf_counter() - at
        samples.append(asdict(Sample(kind.title, at - begun, wall_s, OK, {"device": 1e3 * wall_s})))
    return {"samples": samples}
