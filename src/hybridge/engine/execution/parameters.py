"""Look up a module's current parameters: they may be moved, written, or replaced by others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..program.layers import Norm, Weights
from .group_norm import GroupNorm
from .linear_attention import LinearAttention
from .position_norm import PositionNorm
from .wavelets import with_wavelets

#: Axes of the weight of a convolution within a frame.
_KERNEL_AXES = 4


class ModuleParameters:
    """The parameters of a module whose submodules stay; offloading a module may replace its parameters.

    ``module.parameters()`` gives the same result but takes ten times as long, half a millisecond for a VAE.

    Attributes:
        parts: The submodules by name, as in ``module.named_modules()``.
    """

    def __init__(self, module: nn.Module) -> None:
        self.parts = dict(module.named_modules())
        self._owners = [part for part in self.parts.values() if part._parameters]

    def all(self) -> list[nn.Parameter]:
        """Return all parameters; a shared parameter may occur more than once."""
        return _of(self._owners)

    def of(self, names: Iterable[str]) -> list[nn.Parameter]:
        """Return the parameters of the submodules with these names."""
        return _of(self.parts[name] for name in names)


def _of(owners: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [one for owner in owners for one in owner._parameters.values() if one is not None]


def _sum(weight: torch.Tensor, taps: tuple[int, ...]) -> torch.Tensor:
    """Return the sum of some taps in time, in float32 at least."""
    if len(taps) == 1:
        return weight[:, :, taps[0]]
    some = weight[:, :, list(taps)]
    return some.to(torch.promote_types(weight.dtype, torch.float32)).sum(2)


def _longer(numbers: torch.Tensor, length: int) -> torch.Tensor:
    """Return ``numbers`` with the last along dimension 0 repeated up to this length."""
    return torch.cat([numbers, numbers[-1:].expand(length - len(numbers), *numbers.shape[1:])])


def _with_zeros(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """Return ``numbers`` with so many zeros more along dimension 0."""
    return torch.cat([numbers, numbers.new_zeros(count, *numbers.shape[1:])])


class Parameters:
    """The parameters of a module by the name of their submodule, in the dtype to compute in."""

    def __init__(self, parts: Mapping[str, nn.Module], dtype: torch.dtype) -> None:
        self._parts, self.dtype = parts, dtype

    def of(self, weights: Weights) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight and bias of a layer; for taps in time, with frames and phases one after another."""
        part: Any = self._parts[weights.name]
        weight, bias = part.weight.detach(), part.bias
        if weights.beside:  # whose layers have no biases
            others: list[Any] = [self._parts[name] for name in weights.beside]
            weight = torch.cat([weight, *(other.weight.detach() for other in others)])
        if weight.ndim < _KERNEL_AXES:  # a linear layer
            weight = weight[:, :, None, None]
        if weights.scaled_by is not None:
            mixer: Any = self._parts[weights.scaled_by]
            factor = mixer.mix_factor.detach().to(torch.promote_types(weight.dtype, torch.float32)).sigmoid()
            weight, bias = weight * factor, None if bias is None else bias.detach() * factor
        if weights.wavelets is not None:
            weight, bias = with_wavelets(weights.wavelets, self._parts[weights.wavelets.owner], weight, bias)
        count = (weights.out_channels - weights.last_repeated - weights.zeros) // weights.phases
        if len(weight) != count:
            used = slice(weights.first_output, weights.first_output + count)
            weight, bias = weight[used], None if bias is None else bias[used]
        bias = None if bias is None else bias.detach().to(self.dtype).contiguous()
        if weights.taps is not None:  # (O, C, frames, k, k) → (phases · O, frames · C, k, k)
            weight = torch.cat([torch.cat([_sum(weight, taps) for taps in phase], 1) for phase in weights.taps])
            bias = bias.repeat(weights.phases) if bias is not None and weights.phases > 1 else bias
        if weights.last_repeated:
            weight, bias = (None if one is None else _longer(one, weights.out_channels) for one in (weight, bias))
        if weights.zeros:
            weight, bias = (None if one is None else _with_zeros(one, weights.zeros) for one in (weight, bias))
        return weight.to(self.dtype), bias

    def linear(self, weights: Weights) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight (O, C) and bias of a linear layer or of a 1×1 convolution."""
        weight, bias = self.of(weights)
        return weight.flatten(1), bias

    def norm(self, norm: Norm, channels: int) -> GroupNorm | PositionNorm | LinearAttention:
        """Return a norm with its parameters, in float32 or wider."""
        part: Any = self._parts[norm.name]
        wide = torch.promote_types(self.dtype, torch.float32)
        if norm.kind == "attention":
            return LinearAttention(norm, wide)
        if norm.kind == "rms":
            return PositionNorm(norm, part.gamma.detach().to(wide).flatten(), None, channels, wide)
        weight, bias = (
            None if one is None else one.detach().to(wide)
            for one in (getattr(part, "weight", None), getattr(part, "bias", None))
        )
        if norm.kind == "group" and weight is not None and bias is not None:
            return GroupNorm(norm, weight, bias)
        return PositionNorm(norm, weight, bias, channels, wide)
