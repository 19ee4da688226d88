"""How this machine computes: the profile of a device for a dtype, which plans are made for."""

from __future__ import annotations

import torch

from .kernels.compiled import multiplies_bfloat16, multiplies_float32
from .planning.conv_algorithms import TRANSFORM_FROM_CHANNELS, DeviceProfile

#: Target size of a strip on a CPU.  Measured, see benchmarks/LOG.md.
CPU_STRIP_BYTES = 16 * 2**20

#: Query positions per CPU thread in one strip of attention: twice as many as torch gives a thread at a time.
_ATTENDED_BY_A_THREAD = 512


def device_profile_for(device_type: str, dtype: torch.dtype) -> DeviceProfile:
    """Return how activations of this dtype are computed on such a device: ``cpu``, ``cuda``, …

    A CPU multiplies float32 in strips and with transforms.  Half precision is widened to float32 strip by strip,
    which is faster on a CPU than half-precision arithmetic and rounds less, unless the CPU has matrix instructions
    for it (AMX).  Some layers are multiplied in bfloat16 where that takes half of the time; see
    :func:`.planning.conv_algorithms.algorithm_of`.

    With AVX-512, torch's float32 convolutions are four times as close to float64 as with AVX2.  Ours then are as
    close as torch's, which costs them more time.
    """
    stored = dtype.itemsize
    if device_type == "cuda":
        return DeviceProfile(stored, stored, measured_positions=None)
    if device_type != "cpu":
        return DeviceProfile(stored, stored)
    attended = _ATTENDED_BY_A_THREAD * torch.get_num_threads()
    if stored < torch.float32.itemsize and _has_matrix_instructions(dtype):
        return DeviceProfile(stored, stored, CPU_STRIP_BYTES, attended_positions=attended)
    computed = max(stored, torch.float32.itemsize)
    return DeviceProfile(
        stored,
        computed,
        CPU_STRIP_BYTES,
        TRANSFORM_FROM_CHANNELS,
        attended_positions=attended,
        multiplies_float32=dtype == torch.float32 and multiplies_float32(),
        multiplies_bfloat16=dtype == torch.bfloat16 and multiplies_bfloat16(),
        is_fine=dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() == "AVX512",
    )


def _has_matrix_instructions(dtype: torch.dtype) -> bool:
    names = {torch.bfloat16: "_is_amx_tile_supported", torch.float16: "_is_amx_fp16_supported"}
    supported = getattr(torch.cpu, names.get(dtype, ""), None)  # torch has no public name for it
    return supported is not None and bool(supported())
