"""A full-size VAE in strips beside diffusers' forward: time, memory, and the distance between their pictures.

    python benchmarks/vae.py --size 512 --task decode --dtype float32 --repeats 3

SD's AutoencoderKL with random weights, for speed does not depend on them.  The ways take turns within every round:

* ``exact``: hybridge's strips
* ``diffusers``: as it comes
* ``diffusers, channels-last``: ``vae.to(memory_format=torch.channels_last)``

The roof stands above the table: the program's FLOPs at the speed of the fastest of its own convolution shapes, run
on their own in the same rounds.  Peak is of activations, on top of the weights, from the plans, which the tests
hold against what torch allocates.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from record import keep

from hybridge.engine.execute import Executor
from hybridge.engine.lowering import lower
from hybridge.engine.plan import plan, show_bytes
from hybridge.engine.runner import CPU_STRIP_BYTES

SEED = 0

#: The channels of SD's three widest resolutions, and by how much each is smaller than the picture.
CONVOLUTIONS = ((128, 1), (256, 2), (512, 4))


def seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def convolutions(size: int, dtype: torch.dtype) -> dict[int, tuple[Callable[[], object], int]]:
    """{channels: (a 3×3 convolution over 64 rows of that resolution, its FLOPs)}."""
    made: dict[int, tuple[Callable[[], object], int]] = {}
    for channels, smaller in CONVOLUTIONS:
        width = size // smaller
        rows = min(width, 64)
        picture = torch.randn(1, channels, rows, width, dtype=dtype).to(memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        bias = torch.randn(channels, dtype=dtype)

        def run(
            picture: torch.Tensor = picture, weight: torch.Tensor = weight, bias: torch.Tensor = bias
        ) -> torch.Tensor:
            return F.conv2d(picture, weight, bias, padding=1)

        made[channels] = (run, 2 * 9 * channels**2 * rows * width)
    return made


@torch.inference_mode()
def measure(size: int, task: str, dtype: torch.dtype, repeats: int, strip_bytes: int) -> dict[str, object]:
    """A record without its environment: raw seconds, peaks, FLOPs and distance."""
    torch.manual_seed(SEED)
    blocks = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    vae = AutoencoderKL(
        3, 3, *blocks, block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4
    )
    vae = torch.nn.Module.to(vae.eval(), dtype)
    rival = copy.deepcopy(vae).to(memory_format=torch.channels_last)
    shape = (1, 4, size // 8, size // 8) if task == "decode" else (1, 3, size, size)
    source = torch.randn(shape, dtype=dtype)

    program = lower(vae, "decode" if task == "decode" else "encode")
    about = {"batch": 1, "height": shape[2], "width": shape[3], "itemsize": dtype.itemsize}
    strips = plan(program, **about, cache_bytes=strip_bytes)
    whole = plan(program, **about, cache_bytes=None)
    ours = Executor(program, vae)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "exact": lambda: ours.run(source, strips),
        "diffusers": lambda: _plain(vae, task, source),
        "diffusers, channels-last": lambda: _plain(rival, task, source),
    }
    small = convolutions(size, dtype)
    pictures = {name: way().float() for name, way in ways.items()}
    samples: dict[str, list[float]] = {name: [] for name in ways}
    speeds: dict[int, list[float]] = {channels: [] for channels in small}
    for _ in range(repeats):
        for channels, (run, flops) in small.items():
            speeds[channels].append(flops / min(seconds(run) for _ in range(3)))
        for name, way in ways.items():
            samples[name].append(seconds(way))
    plainly = pictures["diffusers"]
    return {
        "flops": strips.flops,
        "convolution_flops_per_s": speeds,
        "seconds": samples,
        "peak_bytes": {"exact": strips.peak_bytes, "diffusers": whole.peak_bytes},
        "strips": strips.strips,
        "distance": {name: float((p - plainly).norm() / plainly.norm()) for name, p in pictures.items()},
    }


def _plain(vae: AutoencoderKL, task: str, source: torch.Tensor) -> torch.Tensor:
    return vae.decode(source).sample if task == "decode" else vae.encode(source).latent_dist.parameters


def table(record: dict) -> str:
    """The roof, then medians as Markdown."""
    medians = {name: statistics.median(kept) for name, kept in record["seconds"].items()}
    fastest = max(statistics.median(kept) for kept in record["convolution_flops_per_s"].values())
    roof = record["flops"] / fastest
    rows = [
        f"roof: {record['flops'] / 1e12:.3f} TFLOP at {fastest / 1e9:.0f} GFLOP/s is {roof:.2f} s\n",
        "| way | s | × roof | exact is faster by | peak | distance |",
        "|---|---|---|---|---|---|",
    ]
    for name, median in medians.items():
        peak = record["peak_bytes"].get(name)
        rows.append(
            f"| {name} | {median:.2f} | {median / roof:.2f} | {median / medians['exact']:.2f} ×"
            f" | {show_bytes(peak) if peak else ''} | {record['distance'][name]:.1e} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the picture in pixels, a multiple of 8")
    parser.add_argument("--task", choices=["decode", "encode"], default="decode")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--strip-kib", type=int, default=CPU_STRIP_BYTES // 1024, help="of a strip's window and result"
    )
    parser.add_argument("--write", action="store_true", help="keep the record in benchmarks/records")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    record = measure(arguments.size, arguments.task, dtype, arguments.repeats, arguments.strip_kib * 1024)
    print(f"{arguments.task} {arguments.size}², {arguments.dtype}, medians of {arguments.repeats}; {table(record)}")
    if arguments.write:
        asked = {key: getattr(arguments, key) for key in ("size", "task", "dtype", "strip_kib")}
        name = f"vae-{arguments.task}-{arguments.size}-{arguments.dtype}"
        print(f"\n{keep('vae', name, {**asked, 'seed': SEED, **record})}")


if __name__ == "__main__":
    main()
