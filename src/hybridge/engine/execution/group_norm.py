"""A group norm in two steps: gather its statistics strip by strip, then apply it once they are complete."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.compiled import CompiledKernels, compiled_for, supports_layout
from ..kernels.tensor_pointers import OutputMoments
from ..planning.conv_algorithms import DeviceProfile
from ..program.layers import Norm

#: Pieces that are kept of a film before they are merged into one; plans count their memory.
MOST_PIECES = 64

_FLOAT32 = torch.empty(0, dtype=torch.float32, device="cpu")


class Statistics:
    """What is gathered of a value, row by row, for the norm that will read it."""


class Moments(Statistics):
    """Mean and variance of every channel, collected strip by strip and merged on request.

    Args:
        arithmetic: The device's arithmetic.
    """

    def __init__(self, arithmetic: DeviceProfile) -> None:
        self._arithmetic = arithmetic
        self._strips: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # positions, mean (C,), variance (C,)
        self._dtype = _FLOAT32.dtype

    def add(self, rows: torch.Tensor) -> None:
        """Add rows (1, C, n, W), channels-last; each row may be added only once."""
        at_once = self._arithmetic.rows_measured(*rows.shape[2:])
        compiled = self._compiled_for(rows)
        if compiled:
            self._add_blocks(rows, at_once, *compiled.channel_moments(rows, at_once))
            return
        for some in torch.split(rows, at_once, dim=2):
            if self._arithmetic.measured_positions is not None:
                some = some.to(torch.promote_types(some.dtype, torch.float32))
            self._strips.append((some.shape[2] * some.shape[3], *_measured(some)))
        self._dtype = self._strips[-1][1].dtype

    def places_for(self, rows: torch.Tensor) -> OutputMoments | None:
        """Add rows that are not written yet: return where the kernel that writes them has to put their moments.

        None if no kernel can; then call :meth:`add` once the rows are written.
        """
        compiled = self._compiled_for(rows)
        if compiled is None:
            return None
        places = compiled.places_of_moments(rows, self._arithmetic.rows_measured(*rows.shape[2:]))
        self._add_blocks(rows, places.row_block, places.means, places.variances)
        return places

    def _compiled_for(self, rows: torch.Tensor) -> CompiledKernels | None:
        is_copied = self._arithmetic.computed_bytes < _FLOAT32.itemsize  # plans count this copy
        return compiled_for(_FLOAT32, rows.shape[1]) if supports_layout(rows) and not is_copied else None

    def _add_blocks(self, rows: torch.Tensor, at_once: int, means: torch.Tensor, variances: torch.Tensor) -> None:
        count, width = rows.shape[2:]
        for first, *part in zip(range(0, count, at_once), means, variances, strict=True):
            self._strips.append((min(at_once, count - first) * width, *part))
        self._dtype = means.dtype

    def merge(self) -> None:
        """Replace what was collected by one piece, which takes no more memory than a channel's numbers."""
        if len(self._strips) > 1:
            channels = len(self._strips[0][1])
            count = sum(count for count, _, _ in self._strips)
            self._strips = [(count, *self._merged(channels))]

    @property
    def pieces(self) -> int:
        """Number of pieces that were collected."""
        return len(self._strips)

    def of_groups(self, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and biased variance of every channel's group, (C,) each."""
        per_group = len(self._strips[0][1]) // groups
        of_channels = torch.stack(self._merged(groups)).to(self._dtype).repeat_interleave(per_group, dim=1)
        return of_channels[0], of_channels[1]

    def _merged(self, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and biased variance of every group, (groups,) each, in float64.

        Strips and the channels of a group are parts of one sample, merged by the formula of Chan, Golub and LeVeque
        ("Updating formulae and a pairwise algorithm for computing sample variances", 1979): the total variance is
        the variance within the parts plus the variance of their means around the common mean.
        """
        device = self._strips[0][1].device
        wide = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        shape = (len(self._strips), groups, -1)  # strips, groups, channels of a group
        counts = torch.tensor([count for count, _, _ in self._strips], dtype=wide, device=device)
        means = torch.stack([mean for _, mean, _ in self._strips]).to(wide).view(shape)
        variances = torch.stack([variance for _, _, variance in self._strips]).to(wide).view(shape)
        weights = (counts / (counts.sum() * means.shape[2])).view(-1, 1, 1)
        mean = (weights * means).sum((0, 2))
        between = means - mean.view(1, -1, 1)
        variance = (weights * (variances + between.square())).sum((0, 2))
        return mean, variance


def _measured(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and biased variance of every channel."""
    if rows.device.type in ("cpu", "cuda"):
        # Twice as fast as torch's next best function; two passes (mean, then deviation from it), no copy.
        mean, variance = torch.batch_norm_update_stats(rows, None, None, 0.0)
    else:
        variance, mean = torch.var_mean(rows, (0, 2, 3), correction=0)
    return mean, variance


class GroupNorm:
    """The parameters of a group norm.

    Args:
        norm: The norm in the program.
        weight: (C,), in float32 or wider.
        bias: (C,), in float32 or wider.
    """

    def __init__(self, norm: Norm, weight: nn.Parameter | torch.Tensor, bias: nn.Parameter | torch.Tensor) -> None:
        self.groups, self.eps = norm.groups, norm.eps
        self.weight, self.bias = weight, bias

    def with_statistics(self, moments: Statistics | None) -> Normalise:
        """Return the norm as a function for a picture with these statistics."""
        if not isinstance(moments, Moments):
            raise TypeError("a group norm reads a measured value")
        return Normalise(self, *moments.of_groups(self.groups))


class Normalise:
    """A norm with known statistics: one multiplication and one addition per number."""

    def __init__(self, norm: GroupNorm, mean: torch.Tensor, variance: torch.Tensor) -> None:
        self._norm, self._mean, self._variance = norm, mean, variance
        # Two tensors, because on a GPU the operator stores mean and deviation in them while it runs.
        self._kept = mean.new_empty(0), mean.new_empty(0)
        self._compiled = compiled_for(mean, len(mean))
        if self._compiled:
            scale = norm.weight.double() * (variance.double() + norm.eps).rsqrt()
            self._scale, self._shift = scale.float(), (norm.bias.double() - mean.double() * scale).float()

    def with_silu(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Normalise rows and apply SiLU, in one pass where compiled loops exist."""
        if self._compiled and supports_layout(rows) and supports_layout(out):
            self._compiled.scale_shift_silu(rows, self._scale, self._shift, out)
            return
        self(rows, out)
        F.silu(out, inplace=True)

    def __call__(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Normalise rows (1, C, n, W), channels-last, into ``out``, which may have a wider dtype."""
        if (rows.dtype, rows.device) != (out.dtype, out.device):
            out.copy_(rows, non_blocking=True)
            rows = out
        # A batch norm with given statistics has the same formula; torch's takes ``out``, is vectorised, and
        # accepts float32 parameters for half-precision rows.
        torch.ops.aten.native_batch_norm.out(
            rows, self._norm.weight, self._norm.bias, self._mean, self._variance, False, 0.0, self._norm.eps,
            out=out, save_mean=self._kept[0], save_invstd=self._kept[1],
        )  # fmt: skip
