"""Look up a module's current parameters: they may be moved, written, or replaced by others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..program.ops import Norm, Weights
from .group_norm import GroupNorm
from .rms_norm import RmsNorm


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


class Parameters:
    """The parameters of a module by the name of their submodule, in the dtype to compute in."""

    def __init__(self, parts: Mapping[str, nn.Module], dtype: torch.dtype) -> None:
        self._parts, self.dtype = parts, dtype

    def of(self, weights: Weights) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight and bias of a layer; for taps in time, with their input channels one after another."""
        part: Any = self._parts[weights.name]
        weight, bias = part.weight.detach(), part.bias
        if len(weight) != weights.out_channels:
            used = slice(weights.first_output, weights.first_output + weights.out_channels)
            weight, bias = weight[used], None if bias is None else bias[used]
        bias = None if bias is None else bias.detach().to(self.dtype).contiguous()
        if weights.taps is not None:  # (O, C, frames, k, k) → (O, frames · C, k, k)
            weight = torch.cat([weight[:, :, tap] for tap in weights.taps], dim=1)
        return weight.to(self.dtype), bias

    def linear(self, weights: Weights) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight (O, C) and bias of a linear layer or of a 1×1 convolution."""
        weight, bias = self.of(weights)
        return weight.flatten(1), bias

    def norm(self, norm: Norm) -> GroupNorm | RmsNorm:
        """Return a norm with its parameters, in float32 or wider."""
        part: Any = self._parts[norm.name]
        wide = torch.promote_types(self.dtype, torch.float32)
        if norm.kind == "rms":
            return RmsNorm(norm, part.gamma.detach().to(wide).flatten())
        return GroupNorm(norm, part.weight.detach().to(wide), part.bias.detach().to(wide))
