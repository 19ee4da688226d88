"""Kernels for which torch has no operator, compiled when hybridge was installed.

The C files beside this one have them.  Each does in one pass what torch's operators do in several: a convolution
with its transforms, attention, statistics, and scale, shift and SiLU.
"""

from __future__ import annotations

from functools import cache

import torch

from . import library
from .attention_kernels import AttentionKernels
from .conv_kernels import ConvKernels
from .group_norm_kernels import GroupNormKernels
from .tensor_pointers import EITHER, LANES


class CompiledKernels(ConvKernels, AttentionKernels, GroupNormKernels):
    """The library's functions, for tensors: each tensor is checked before C gets its address."""


def supports_layout(image: torch.Tensor) -> bool:
    """Whether the kernels can read and write an image (1, C, rows, columns): its dtype, device and layout."""
    _, channel_stride, _, column_stride = image.stride()
    is_channels_last = channel_stride == 1 and column_stride == image.shape[1]
    return is_channels_last and image.is_cpu and image.dtype in EITHER and not image.is_neg()


def multiplies_float32() -> bool:
    """Whether there are matrix products of float32 for this processor."""
    compiled = _load()
    return compiled is not None and compiled.multiplies(torch.float32)


def multiplies_bfloat16() -> bool:
    """Whether there are matrix products of bfloat16 for this processor, in half the time of float32."""
    compiled = _load()
    return compiled is not None and compiled.multiplies(torch.bfloat16)


def compiled_for(like: torch.Tensor, *channels: int) -> CompiledKernels | None:
    """The compiled kernels, if there are any for tensors like this one and for so many channels."""
    fits = like.is_cpu and like.dtype == torch.float32
    return _load() if fits and not any(count % LANES for count in channels) else None


@cache
def _load() -> CompiledKernels | None:
    found = library.load()
    return None if found is None else CompiledKernels(found)
