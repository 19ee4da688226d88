"""What a server's memory grows by while it answers a film, beside what its plan says.

A server of its own process, with a small VAE of random weights, decodes 121 frames of 256×256 to an MP4.  Its
resident set is read from Linux: the highest value during a request less the value before, after a first film of a
few frames.  Once the film is read as it comes, and once nothing is read until it could be done.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import httpx
import torch

from hybridge.engine import Engine, EngineOptions, resolve
from hybridge.lab.harness.environment import environment

RECORDS = Path(__file__).parent / "records"

SIDE, FRAMES = 256, 121

#: Small models, and the shape of the latents of such a film.
MODELS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "wan-2.1": (
        lambda: diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1),
        (1, 16, 31, SIDE // 8, SIDE // 8),
    ),
    "hunyuan-video": (
        lambda: diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=16, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
        ),
        (1, 16, 31, SIDE // 8, SIDE // 8),
    ),
    "cogvideox-2b": (
        lambda: diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=16,
            layers_per_block=1,
            norm_num_groups=2,
        ),
        (1, 31, 16, SIDE // 8, SIDE // 8),
    ),
}


def resident(process: int, name: str) -> int:
    """``VmRSS``, or ``VmHWM``, the highest since it was forgotten, in bytes."""
    found = re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def forget_highest(process: int) -> None:
    """From here on ``VmHWM`` is the highest since now."""
    Path(f"/proc/{process}/clear_refs").write_text("5")


def wait_for(address: str) -> None:
    """Until a server answers there, two minutes at most."""
    for _ in range(240):
        try:
            httpx.get(address)
            return
        except httpx.TransportError:
            time.sleep(0.5)


def film(address: str, shape: tuple[int, ...], *, unread_s: float = 0.0) -> tuple[int, float]:
    """Its bytes, and the seconds that it took; nothing is read for so long."""
    latents = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    query = {"shape": list(shape), "dtype": "float32", "output_type": "mp4", "do_scaling": True}
    headers, begun = {"content-type": "tensor/binary"}, time.perf_counter()
    body = latents.numpy().tobytes()
    with httpx.stream("POST", address, content=body, params=query, headers=headers, timeout=900) as response:
        response.raise_for_status()
        time.sleep(unread_s)
        return sum(map(len, response.iter_raw())), time.perf_counter() - begun


def measured(name: str, folder: Path, threads: int) -> dict[str, Any]:
    """One model: the plan, and what the server's memory grew by."""
    make, shape = MODELS[name]
    torch.manual_seed(0)
    make().eval().save_pretrained(folder)
    model = f"{name}={folder}"
    plan = Engine.load(resolve(model), EngineOptions(device="cpu")).plan("decode", 1, SIDE, SIDE, FRAMES)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = "from hybridge.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", model, "--port", str(port), "--preload"]
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    server = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        address = f"http://127.0.0.1:{port}/v1/{name}/decode"
        few = tuple(min(length, 3) if length == 31 else min(length, 16) for length in shape)
        film(address, (*few[:3], 4, 4))
        before = resident(server.pid, "VmRSS")
        forget_highest(server.pid)
        nbytes, seconds = film(address, shape)
        read = resident(server.pid, "VmHWM") - before
        forget_highest(server.pid)
        film(address, shape, unread_s=1.5 * seconds)
        unread = resident(server.pid, "VmHWM") - before
    finally:
        server.terminate()
        server.wait(60)
    return {
        "model": name,
        "mode": plan.mode,
        "planned_bytes": plan.peak_bytes,
        "grown_bytes": read,
        "grown_unread_bytes": unread,
        "frames_bytes": FRAMES * SIDE * SIDE * 3,
        "file_bytes": nbytes,
        "seconds": round(seconds, 2),
    }


def main() -> None:
    """Measures the models that are named, and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], help="(%(choices)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="keep the record in benchmarks/records")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(name, Path(folder), arguments.threads))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.write:
        document = {"schema": 1, "environment": environment(torch.device("cpu")), "films": rows}
        (RECORDS / "film-memory.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
