"""What a program could not be faster than on this machine: its own products, at the speed that they reach alone.

Every convolution shape of the program is run by itself, as torch's plain channels-last convolution, once on as many
rows as stay in a cache and once on many; the better speed counts, so that nobody is flattered by a slow roof.
Attention's share is counted at the speed of its matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ...engine.options import choose_device
from ...engine.program.ops import Attend, Convolve
from ...engine.program.program import Program
from ...models import ModelSpec
from ..harness.measure import seconds
from .cases import Case
from .subject import program_of, shape

#: Input and output of a convolution together: what stays in a core's share of a cache, and what fits in none.
CACHED_BYTES = 4 * 2**20
LARGE_BYTES = 256 * 2**20

#: A piece of a picture is at least this high, as long as it stays in the cache.
_ROWS = 8

#: Queries at once: attention's scores are never whole.
_QUERIES = 1024

#: How long one speed is measured for, after a first call that does not count; at least two calls.
_MEASURE_S = 0.05


@dataclass(frozen=True, slots=True)
class Convolution:
    """The convolutions of a program that differ in nothing but the picture's size.

    Attributes:
        kernel: Its side.  A 3×3 convolution of a doubled picture is four of 2×2, as programs count it.
        height, width: Of the largest picture that is read.
        flops: Of all of them together.
    """

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    height: int
    width: int
    flops: int


def convolutions(program: Program, height: int, width: int, frames: int = 1) -> list[Convolution]:
    """Those of the program for an input of this size; their FLOPs add up to the program's, less attention's."""
    sizes, lengths = program.sizes(height, width), program.lengths(frames)
    found: dict[tuple[int, int, int, int], Convolution] = {}

    def add(channels: tuple[int, int], kernel: int, stride: int, size: tuple[int, int], flops: int) -> None:
        key = (*channels, kernel, stride)
        before = found.get(key)
        rows, columns = max(size, (before.height, before.width)) if before else size
        found[key] = Convolution(*key, rows, columns, flops + (before.flops if before else 0))

    for op, flops in zip(program.ops, program.flops(height, width, frames), strict=True):
        if not isinstance(op, Convolve):
            continue
        weights, short = op.weights, op.shortcut
        rows, columns = sizes[op.target]
        positions = lengths[op.target] * rows * columns
        shortcut_flops = 2 * positions * short.in_channels * short.out_channels if short else 0
        kernel = 2 if op.doubled else weights.kernel
        channels = (weights.in_channels, weights.out_channels)
        add(channels, kernel, op.stride, sizes[op.source], flops - shortcut_flops)
        if short:
            add((short.in_channels, short.out_channels), 1, 1, sizes[op.target], shortcut_flops)
    return list(found.values())


@torch.inference_mode()
def measure(case: Case, spec: ModelSpec) -> dict[str, Any]:
    """Speeds and FLOPs for a case, as the record keeps them.

    Raises:
        CannotLower: when the exact engine does not know the module; there is no roof then.
    """
    program = program_of(case, spec)
    _, _, *times, height, width = shape(case, spec)
    frames = times[0] if times else 1
    device, dtype = choose_device(case.device).value, getattr(torch, case.dtype)
    flops = program.flops(height, width, frames)
    attention = [(op, flops[index]) for index, op in enumerate(program.ops) if isinstance(op, Attend)]
    kept = []
    for convolution in convolutions(program, height, width, frames):
        speeds = {
            name: _convolution_speed(convolution, nbytes, device, dtype)
            for name, nbytes in (("cached", CACHED_BYTES), ("large", LARGE_BYTES))
        }
        shown = {name: getattr(convolution, name) for name in ("in_channels", "out_channels", "kernel", "stride")}
        kept.append({**shown, "flops": convolution.flops, "flops_per_s": speeds})
    sizes = program.sizes(height, width)
    matmul = [_attention_speed(op, *sizes[op.source], device, dtype) for op, _ in attention]
    return {
        "flops": sum(flops),
        "convolutions": kept,
        "attention_flops": sum(count for _, count in attention),
        "matmul_flops_per_s": max(matmul, default=None),
    }


def _convolution_speed(shape: Convolution, nbytes: int, device: torch.device, dtype: torch.dtype) -> float:
    bytes_per_position = (shape.in_channels + shape.out_channels) * dtype.itemsize
    columns = max(shape.kernel, min(shape.width, nbytes // (bytes_per_position * _ROWS)))
    rows = max(shape.kernel, min(shape.height, nbytes // (bytes_per_position * columns)))
    given = torch.randn(1, shape.in_channels, rows, columns, device=device).to(dtype)
    weight = torch.randn(shape.out_channels, shape.in_channels, shape.kernel, shape.kernel, device=device).to(dtype)
    given = given.to(memory_format=torch.channels_last)
    weight = weight.to(memory_format=torch.channels_last)
    padding = shape.kernel // 2 if shape.kernel % 2 and shape.stride == 1 else 0
    made = F.conv2d(given, weight, stride=shape.stride, padding=padding)
    flops = 2 * made[0, 0].numel() * shape.kernel**2 * shape.in_channels * shape.out_channels
    return flops / _fastest(lambda: F.conv2d(given, weight, stride=shape.stride, padding=padding), device)


def _attention_speed(op: Attend, height: int, width: int, device: torch.device, dtype: torch.dtype) -> float:
    positions, depth = height * width, op.query.out_channels // op.heads
    queries = torch.randn(min(_QUERIES, positions), depth, device=device).to(dtype)
    keys = torch.randn(positions, depth, device=device).to(dtype)
    flops = 2 * 2 * queries.shape[0] * positions * depth
    return flops / _fastest(lambda: (queries @ keys.T) @ keys, device)


def _fastest(run: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Seconds of the fastest call."""
    run()
    samples: list[float] = []
    while len(samples) < 2 or sum(samples) < _MEASURE_S:
        samples.append(seconds(run, device))
    return min(samples)
