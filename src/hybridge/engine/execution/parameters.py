"""Look up a module's current parameters: they may be moved, written, or replaced by others."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


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
