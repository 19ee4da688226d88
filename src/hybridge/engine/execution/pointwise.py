"""Functions of single numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ..program.ops import FOURIER_POWERS

#: The functions of :data:`.ops.POINTWISE`, in place, with the same order of operations as diffusers' code.
IN_PLACE: dict[str, Callable[[torch.Tensor], Any]] = {
    "silu": lambda x: F.silu(x, inplace=True),
    "relu": lambda x: x.relu_(),
    "gelu": lambda x: x.copy_(F.gelu(x)),
    "mish": lambda x: F.mish(x, inplace=True),
    "from_signed": lambda x: x.add_(1).div_(2),
    "to_signed": lambda x: x.mul_(2).sub_(1),
    "soft_clamp": lambda x: x.div_(3).tanh_().mul_(3),
    "clamp": lambda x: x.clamp_(-1, 1),
}


def gated(rows: torch.Tensor, out: torch.Tensor) -> None:
    """Write rows (1, C, n, W), of which the second half of the channels are gates, to ``out``, (1, C / 2, n, W)."""
    values, gates = rows.chunk(2, dim=1)
    out.copy_(gates)
    F.silu(out, inplace=True)
    out.mul_(values)


def with_fourier_features(rows: torch.Tensor, out: torch.Tensor) -> None:
    """Write rows (1, C, n, W) to ``out``, (1, 5·C, n, W), and after them their sines and cosines."""
    channels, count = rows.shape[1], len(FOURIER_POWERS)
    out[:, :channels] = rows
    rows = rows.to(torch.promote_types(out.dtype, torch.float32))  # angles of hundreds
    for number, power in enumerate(FOURIER_POWERS):
        turned = rows * (2.0**power * (2 * math.pi))
        for part, function in enumerate((torch.sin, torch.cos)):
            first = channels * (1 + part * count) + number
            out[:, first : first + channels * count : count] = function(turned)


#: The functions of :data:`.ops.RESIZING`: from rows to a place of other channels.
RESIZED: dict[str, Callable[[torch.Tensor, torch.Tensor], None]] = {
    "fourier": with_fourier_features,
    "gated": gated,
}
