"""Runs a program in strips, as its plan says.

Numbers: a group norm's statistics are taken per strip, in float32 at least, and merged in float64, so they do not
depend on where strips begin; everything else is what the plain forward computes, row by row.  The result is *within
rounding* of the plain forward, never a blend.

Memory: what the plan says.  Activations lie channels-last, so that the rows of a strip are one piece of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import RequestError, Stopped
from .ops import Attend, Convolve, Norm, Padding
from .plan import Plan
from .program import Program

#: Called after every strip with (strips done, strips in all).
Progress = Callable[[int, int], None]

#: Asked after every strip; True ends the run.
ShouldStop = Callable[[], bool]


class Executor:
    """A program bound to a module's weights.

    What can be computed from the weights alone is computed once, and again when they are moved or replaced.

    Args:
        program: What to run.
        module: The module that it was lowered from.
    """

    def __init__(self, program: Program, module: nn.Module) -> None:
        self.program = program
        self._parts = dict(module.named_modules())
        self._parameters = list(module.parameters())
        self._bound: tuple[_Convolution | _Attention, ...] = ()
        self._bound_to: list[tuple[object, ...]] = []

    @torch.no_grad()
    def run(
        self,
        source: torch.Tensor,
        plan: Plan,
        *,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> torch.Tensor:
        """The program's output for ``source``.

        Args:
            source: (B, C, H, W) of the plan's shape, on the weights' device and of their dtype.
            plan: In mode ``strips``.
            progress: Hears of every strip.
            should_stop: Asked after every strip but the last.

        Returns:
            (B, C', H', W'), contiguous.

        Raises:
            RequestError: when the source is not what the plan was made for.
            Stopped: when ``should_stop`` said so.
        """
        self._check(source, plan)
        self._bind()
        height, width = self.program.sizes(plan.height, plan.width)[-1]
        output = source.new_empty((plan.batch, self.program.channels[-1], height, width))
        strips = self._strips(source, output, plan)
        for done, _ in enumerate(strips, start=1):
            if progress:
                progress(done, plan.strips)
            if should_stop and done < plan.strips and should_stop():
                # A traceback keeps the variables of its frames: none may hold a tensor.
                strips.close()
                del output, strips
                raise Stopped(f"the {self.program.task} was stopped", saw=f"{done} of {plan.strips} strips done")
        return output

    def _check(self, source: torch.Tensor, plan: Plan) -> None:
        expected = (plan.batch, self.program.channels[0], plan.height, plan.width)
        dtype = self._parameters[0].dtype
        if plan.mode != "strips" or tuple(source.shape) != expected or source.dtype != dtype:
            raise RequestError(
                "not what this plan was made for",
                saw=f"{list(source.shape)} in {source.dtype}, mode {plan.mode}",
                expected=f"{list(expected)} in {dtype}, mode strips",
            )

    def _bind(self) -> None:
        bound_to = [_identity(parameter) for parameter in self._parameters]
        if bound_to != self._bound_to:
            self._bound = tuple(
                _Attention(op, self._parts) if isinstance(op, Attend) else _Convolution(op, self._parts)
                for op in self.program.ops
            )
            self._bound_to = bound_to

    def _strips(self, source: torch.Tensor, output: torch.Tensor, plan: Plan) -> Generator[None]:
        for item in range(plan.batch):
            run = _Item(self.program, plan, source[item : item + 1], output[item : item + 1])
            for index, bound in enumerate(self._bound):
                yield from run.op(index, bound)


class _Item:
    """One item of the batch on its way through the program: which values exist, and where."""

    def __init__(self, program: Program, plan: Plan, source: torch.Tensor, output: torch.Tensor) -> None:
        self._program, self._plan, self._output = program, plan, output
        self._last_reads = program.last_reads()
        self._values = {0: source}
        self._moments: dict[int, _Moments] = {}
        self._buffers: dict[int, torch.Tensor] = {}

    def op(self, index: int, bound: _Convolution | _Attention) -> Generator[None]:
        """Runs one op, yielding after every strip, and frees what nothing reads any more."""
        op, step = self._program.ops[index], self._plan.steps[index]
        self._values[op.target] = self._output if step.buffer is None else self._buffer(step.buffer)
        if self._program.norm_of(op.target):
            self._moments[op.target] = _Moments()
        yield from bound.strips(
            self._values[op.source],
            self._values[op.target],
            None if op.residual is None else self._values[op.residual],
            rows=step.rows,
            moments=self._moments.get(op.source),
            gather=self._moments.get(op.target),
        )
        for value in [value for value in self._values if self._last_reads[value] <= index]:
            del self._values[value]
            self._moments.pop(value, None)
        for buffer in [b for b in self._buffers if self._plan.buffers[b].last_op <= index]:
            del self._buffers[buffer]

    def _buffer(self, index: int) -> torch.Tensor:
        if index not in self._buffers:
            shape = self._plan.buffers[index]
            self._buffers[index] = _channels_last(self._output, shape.channels, shape.height, shape.width)
        return self._buffers[index]


class _Moments:
    """Mean and variance of every channel, strip by strip, merged when they are asked for."""

    def __init__(self) -> None:
        self._strips: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # positions, mean (C,), variance (C,)

    def add(self, rows: torch.Tensor) -> None:
        """Takes in rows (1, C, n, W), channels-last, that no other call takes in."""
        # Twice as fast as the next best of torch's ways, in two passes (mean, then deviation from it), no copy.
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        self._strips.append((rows.shape[2] * rows.shape[3], *torch.batch_norm_update_stats(wide, None, None, 0.0)))

    def of_groups(self, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and biased variance of every channel's group, (C,) each.

        Strips and the channels of a group are parts of one sample, merged by the formula of Chan, Golub and LeVeque
        ("Updating formulae and a pairwise algorithm for computing sample variances", 1979): the variance of the
        whole is that within its parts, and that of their means around the common mean.
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
        of_groups = torch.stack([mean, variance]).to(self._strips[0][1].dtype)
        of_channels = of_groups.repeat_interleave(means.shape[2], dim=1)
        return of_channels[0], of_channels[1]


class _Normalisation:
    """A group norm whose statistics are known: one multiplication and one addition per number."""

    def __init__(self, norm: Norm, parts: Mapping[str, nn.Module]) -> None:
        self._groups, self._eps = norm.groups, norm.eps
        weight, bias = _parameters(parts, norm.name)
        wide = torch.promote_types(weight.dtype, torch.float32)
        self._weight, self._bias = weight.to(wide), bias.to(wide)

    def into(self, moments: _Moments | None) -> Callable[[torch.Tensor, torch.Tensor], Any]:
        """A function (rows, out) that writes the normalised rows to ``out``."""
        assert moments is not None  # noqa: S101 - whoever made the value gathered them, for norm_of named this norm
        mean, variance = moments.of_groups(self._groups)
        nothing = mean.new_empty(0)

        def normalise(rows: torch.Tensor, out: torch.Tensor) -> None:
            # A batch norm with given statistics is the same formula, and torch has it with ``out``, vectorised,
            # and with float32 parameters for half-precision rows.
            torch.ops.aten.native_batch_norm.out(
                rows, self._weight, self._bias, mean, variance, False, 0.0, self._eps,
                out=out, save_mean=nothing, save_invstd=nothing,
            )  # fmt: skip

        return normalise


class _Convolution:
    """A :class:`.ops.Convolve` with its weights at hand."""

    def __init__(self, op: Convolve, parts: Mapping[str, nn.Module]) -> None:
        self._op = op
        self._weight, self._bias = _parameters(parts, op.weights.name)
        if op.doubled:
            self._weight = _doubled_kernels(self._weight)
            self._bias = None if self._bias is None else self._bias.repeat(4)
        self._shortcut = None if op.shortcut is None else _parameters(parts, op.shortcut.name)
        self._norm = None if op.norm is None else _Normalisation(op.norm, parts)
        self._entering = _IN_PLACE[op.entering] if op.entering else None
        self._leaving = _IN_PLACE[op.leaving] if op.leaving else None
        # torch pads both sides alike; what differs is padded in the window.
        even = op.padding.left == op.padding.right
        self._columns = Padding() if even else Padding(left=op.padding.left, right=op.padding.right)
        self._padding = (0, op.padding.left if even else 0)

    def strips(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        residual: torch.Tensor | None,
        *,
        rows: int,
        moments: _Moments | None,
        gather: _Moments | None,
    ) -> Generator[None]:
        """Writes ``target``, ``rows`` rows at a time, yielding after each.  (1, C, H, W) all.

        ``target`` may be ``source`` or ``residual``: a strip is written after its rows were read, and the window
        keeps those that the next strip reads again.
        """
        normalise = self._norm.into(moments) if self._norm else _copy
        window = self._window(source, rows)
        begun = ended = 0
        for first in range(0, target.shape[2], rows):
            end = min(first + rows, target.shape[2])
            start, stop = self._op.rows_read(first, end)
            kept = max(0, ended - start) if first else 0
            for row in range(kept):  # upwards, for with one-row strips these overlap
                window[:, :, row].copy_(window[:, :, ended - begun - kept + row])
            self._enter(source, window, start, start + kept, stop, normalise)
            begun, ended = start, stop

            wanted = target[:, :, first:end]
            made = self._convolve(window[:, :, : stop - start], wanted)
            if residual is not None:
                made += self._carried(residual[:, :, first:end])
            if self._leaving:
                self._leaving(made)
            if made is not wanted:
                wanted.copy_(made)
            if gather is not None:
                gather.add(made)
            del made
            yield

    def _window(self, source: torch.Tensor, rows: int) -> torch.Tensor:
        """Room for the source rows that ``rows`` target rows need."""
        start, stop = self._op.rows_read(0, rows)
        left, right = self._columns.left, self._columns.right
        window = _channels_last(source, source.shape[1], stop - start, source.shape[3] + left + right)
        window[..., :left].zero_()
        window[..., source.shape[3] + left :].zero_()
        return window

    def _enter(
        self,
        source: torch.Tensor,
        window: torch.Tensor,
        start: int,
        fresh: int,
        stop: int,
        normalise: Callable[[torch.Tensor, torch.Tensor], Any],
    ) -> None:
        """Fills the window, whose first row is source row ``start``, with rows [fresh, stop): zeros outside."""
        height, width = source.shape[2:]
        inside, outside = max(fresh, 0), max(min(stop, height), fresh, 0)
        window[:, :, fresh - start : inside - start].zero_()
        window[:, :, outside - start : stop - start].zero_()
        if outside > inside:
            left = self._columns.left
            entered = window[:, :, inside - start : outside - start, left : left + width]
            normalise(source[:, :, inside:outside], entered)
            if self._entering:
                self._entering(entered)

    def _convolve(self, window: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """What the convolution gives for the rows in the window: a new tensor, or ``target`` itself, written."""
        if not self._op.doubled:
            return F.conv2d(window, self._weight, self._bias, self._op.stride, self._padding)
        channels, (rows, columns) = target.shape[1], (target.shape[2] // 2, target.shape[3] // 2)
        phases = F.conv2d(window, self._weight, self._bias, padding=(0, 1))
        for below in (0, 1):
            for right in (0, 1):
                phase = channels * (2 * below + right)
                target[:, :, below::2, right::2] = phases[
                    :, phase : phase + channels, below : below + rows, right : right + columns
                ]
        return target

    def _carried(self, residual: torch.Tensor) -> torch.Tensor:
        return residual if self._shortcut is None else F.conv2d(residual, *self._shortcut)


class _Attention:
    """A :class:`.ops.Attend` with its weights at hand."""

    def __init__(self, op: Attend, parts: Mapping[str, nn.Module]) -> None:
        self._heads = op.heads
        self._norm = _Normalisation(op.norm, parts)
        self._inner = [_parameters(parts, layer.name) for layer in (op.query, op.key, op.value)]
        self._out = _parameters(parts, op.out.name)

    def strips(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        residual: torch.Tensor | None,
        *,
        rows: int,
        moments: _Moments | None,
        gather: _Moments | None,
    ) -> Generator[None]:
        """Writes ``target``, which may be ``source``, and yields once.  (1, C, H, W) both."""
        del residual, rows  # the source, and all of them
        _, channels, height, width = source.shape
        normalised = _channels_last(source, channels, height, width)
        self._norm.into(moments)(source, normalised)
        tokens = normalised.permute(0, 2, 3, 1).reshape(1, height * width, channels)
        query, key, value = (
            F.linear(tokens, *layer).view(1, height * width, self._heads, -1).transpose(1, 2)
            for layer in self._inner
        )
        del normalised, tokens
        mixed = F.scaled_dot_product_attention(query, key, value)
        del query, key, value
        mixed = F.linear(mixed.transpose(1, 2).reshape(1, height * width, -1), *self._out)
        torch.add(source, mixed.view(1, height, width, channels).permute(0, 3, 1, 2), out=target)
        del mixed
        if gather is not None:
            gather.add(target)
        yield


#: What the names of :data:`.ops.POINTWISE` do, in place, in the order of operations of diffusers' own code.
_IN_PLACE: dict[str, Callable[[torch.Tensor], Any]] = {
    "silu": lambda x: F.silu(x, inplace=True),
    "relu": lambda x: x.relu_(),
    "gelu": lambda x: x.copy_(F.gelu(x)),
    "mish": lambda x: F.mish(x, inplace=True),
    "from_signed": lambda x: x.add_(1).div_(2),
    "to_signed": lambda x: x.mul_(2).sub_(1),
    "soft_clamp": lambda x: x.div_(3).tanh_().mul_(3),
}


def _doubled_kernels(weight: torch.Tensor) -> torch.Tensor:
    """(O, I, 3, 3), to be used after nearest ×2 → (4·O, I, 2, 2), to be used before it, one phase after another.

    Of a doubled picture's rows y-1, y and y+1, two come from the same source row: for an even y the last two, for
    an odd one the first two.  Their taps are summed; the same holds for columns.
    """
    taps = torch.tensor(
        [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]],  # phase, tap of two, tap of three
        dtype=torch.promote_types(weight.dtype, torch.float32),
        device=weight.device,
    )
    kernels = torch.einsum("pua,qvb,oiab->pqoiuv", taps, taps, weight.to(taps.dtype))
    return kernels.flatten(0, 2).to(weight.dtype).contiguous(memory_format=torch.channels_last)


def _identity(parameter: torch.Tensor) -> tuple[object, ...]:
    """What changes when a parameter is moved, replaced or written to; inference mode does not count writes."""
    version = 0 if parameter.is_inference() else parameter._version
    return parameter.data_ptr(), version, parameter.dtype, parameter.device


def _parameters(parts: Mapping[str, nn.Module], name: str) -> tuple[Any, Any]:
    part: Any = parts[name]
    return part.weight.detach(), None if part.bias is None else part.bias.detach()


def _channels_last(like: torch.Tensor, channels: int, height: int, width: int) -> torch.Tensor:
    shape = (1, channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _copy(rows: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(rows)
