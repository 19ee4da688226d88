"""The loss by fewer bits: the shipped photograph as latents of every dtype, and in every picture format.

The latents are the starter's, as a pipeline has them, in float32.  PSNR is against the picture that the float32
latents give, and against the photograph.  The protocol has no ``uint8``: it is simulated here, affine for
each channel, to judge whether it would be useful.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import hybridge
from hybridge import Client
from hybridge.engine import Engine, EngineOptions
from hybridge.lab.harness import record
from hybridge.lab.harness.environment import environment
from hybridge.models import look_up
from hybridge.protocol import DecodeRequest, Scaling, WireTensor
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

PHOTOGRAPH = f"{hybridge.__path__[0]}/assets/photograph.jpg"
RECORDS = Path(__file__).parent / "records"
SCALED = Scaling.of(True, None, None)


def psnr_db(one: Any, other: Any) -> float | None:
    """Return the PSNR in dB; None if both are equal."""
    error = np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2)
    return round(float(10 * np.log10(255**2 / error)), 2) if error else None


def as_uint8(latents: np.ndarray) -> np.ndarray:
    """Quantise to eight bits and back, with a scale and an offset for each channel."""
    low, high = (reduce(latents, axis=(0, 2, 3), keepdims=True) for reduce in (np.min, np.max))
    step = (high - low) / 255
    return (((latents - low) / step).round() * step + low).astype(np.float32)


def measure(engine: Engine) -> dict[str, Any]:
    with Image.open(PHOTOGRAPH) as file:
        photograph = np.asarray(file.convert("RGB"))
    with running(create_app(LocalBackend({"starter": engine}))) as address, Client(address) as client:
        pixels = photograph[None].transpose(0, 3, 1, 2).astype(np.float32) / 255
        latents = client.encode(pixels, model="starter", do_scaling=True, value_range="unit")

        def decoded(z: np.ndarray, **arguments: Any) -> np.ndarray:
            return client.decode(z, model="starter", do_scaling=True, output="pixels", **arguments)[0]

        whole = decoded(latents)
        ways = {
            "float32": (latents.nbytes, whole),
            "float16": (latents.nbytes // 2, decoded(latents, quantize="float16")),
            "bfloat16": (latents.nbytes // 2, decoded(latents, quantize="bfloat16")),
            "uint8, simulated": (latents.nbytes // 4, decoded(as_uint8(latents))),
        }
        formats = {}
        for name in ("png", "webp", "jpeg"):
            request = DecodeRequest(WireTensor.from_numpy(latents), SCALED, "picture", name)
            reply = client.send(request, model="starter")
            formats[name] = (reply.bytes_down, np.asarray(reply.picture()))
        formats["pixels"] = (whole.nbytes, whole)
    return {
        "latents": {
            name: {
                "bytes": size,
                "psnr_db_float32": psnr_db(got, whole),
                "psnr_db_photograph": psnr_db(got, photograph),
            }
            for name, (size, got) in ways.items()
        },
        "formats": {
            name: {"bytes": size, "psnr_db_pixels": psnr_db(got, whole)} for name, (size, got) in formats.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the record in benchmarks/records")
    arguments = parser.parse_args()
    engine = Engine.load(look_up("starter"), EngineOptions(dtype="float32"))
    measured = measure(engine)
    for kind, rows in measured.items():
        for name, row in rows.items():
            print(f"{kind} {name}: " + ", ".join(f"{key} {value}" for key, value in row.items()))
    if arguments.write:
        path = RECORDS / "precision.json"
        record.write(record.begin("precision", environment(engine.device.value), {}, **measured), path)
        print(path)


if __name__ == "__main__":
    main()
