"""Check whether a module runs its classes' own code, and whether it has changed since an earlier check.

A program that was lowered from a module reproduces the code of torch and diffusers.  It cannot reproduce hooks,
replaced methods and changed settings: :func:`why_touched` names them, and :class:`Structure` detects changes since
an earlier check.
"""

from __future__ import annotations

from collections.abc import Container
from copy import copy
from typing import Any

import torch
from torch import nn

from .program import Task

#: Top-level submodules that a task does not run.
_UNUSED: dict[Task, tuple[str, ...]] = {
    "decode": ("encoder", "quant_conv"),
    "encode": ("decoder", "post_quant_conv"),
}

#: Hooks that a module calls in addition to its forward.
_HOOKS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_backward_hooks": "a backward hook",
}

#: Methods that do a module's computation.  Replacing one in a class replaces it in all of the class's modules.
_COMPUTING = (
    *("__call__", "_call_impl", "forward", "_conv_forward", "decode", "_decode", "encode", "_encode"),
    *("get_attention_scores", "prepare_attention_mask", "head_to_batch_dim", "batch_to_head_dim"),
)

#: The name of torch's ``forward`` for modules that are never called, such as a list of modules.
_NO_FORWARD = "_forward_unimplemented"

#: Attributes that hold tensors.
_WEIGHTS = ("_parameters", "_buffers")

_LIBRARIES = ("torch", "diffusers")


def kind(thing: Any) -> str:
    """Return the name of a thing's class if torch or diffusers defines it, else the name with its module.

    Adapters and quantisers also name their layers ``Conv2d`` and ``Linear``.
    """
    found = type(thing)
    root = found.__module__.partition(".")[0]
    is_known = getattr(nn, found.__name__, None) is found if root == "torch" else root == "diffusers"
    return found.__name__ if is_known else f"{found.__module__}.{found.__qualname__}"


def why_touched(module: nn.Module, task: Task) -> str | None:
    """Return why this task of the module does not run its classes' own code; None if it does.

    The module's own hooks and its own ``forward`` do not count: ``decode`` and ``encode`` do not run them.
    """
    for name, part in module.named_modules():
        if name.partition(".")[0] not in _UNUSED[task]:
            reason = why_replaced(part, () if name else ("forward",)) or (_hooks(part) if name else None)
            if reason is not None:
                return f"{name or type(part).__name__} has {reason}"
    return None


def why_replaced(thing: Any, besides: Container[str] = ()) -> str | None:
    """Return which method is not its class's own, or not written by torch or diffusers; None if all are.

    Args:
        thing: A module, or a callable that a module uses.
        besides: Methods that may be replaced.
    """
    owner = type(thing)
    classes = {one.__qualname__ for one in owner.__mro__}
    for name in vars(thing):
        if name not in besides and callable(getattr(owner, name, None)):
            return f"another {name} than its class"
    for name in _COMPUTING:
        if name in besides:
            continue
        function = getattr(owner, name, None)
        while function is not None:
            made_in = getattr(function, "__globals__", {}).get("__name__", "")
            if made_in.partition(".")[0] not in _LIBRARIES:
                return f"a {name} from {made_in or 'elsewhere'}"
            written_as = function.__qualname__
            is_inherited = written_as.rpartition(".")[0] in classes or written_as == _NO_FORWARD
            if not is_inherited and "<locals>" not in written_as:
                return f"{written_as} as its {name}"
            function = getattr(function, "__wrapped__", None)
    return None


def _hooks(part: nn.Module) -> str | None:
    return next((what for name, what in _HOOKS.items() if getattr(part, name)), None)


class Structure:
    """A snapshot of a module's parts and of their attributes.

    It contains the shapes of the weights but not their values.  Checking a module of 250 parts takes a tenth of a
    millisecond.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        owners = [owner for part in module.modules() for owner in _with_helpers(part)]
        self._parts = [(owner, type(owner), _copied(owner)) for owner in owners]
        kinds = {kind for _, owner_kind, _ in self._parts for kind in owner_kind.__mro__}
        self._kinds = [(kind, dict(vars(kind))) for kind in kinds if kind is not object]
        self._owners = [part for part in module.modules() if part._parameters]
        self._shapes = self._look_at_shapes()

    def is_as_it_was(self) -> bool:
        """Return whether no attribute or part was set, replaced, added or removed since the snapshot."""
        try:
            return (
                all(type(part) is kind and vars(part) == before for part, kind, before in self._parts)
                and all(vars(kind) == before for kind, before in self._kinds)
                and self._look_at_shapes() == self._shapes
            )
        except (RuntimeError, ValueError, TypeError):  # from comparing new values with old ones
            return False

    def _look_at_shapes(self) -> list[torch.Size | None]:
        return [
            None if parameter is None else parameter.shape
            for part in self._owners
            for parameter in part._parameters.values()
        ]


def _with_helpers(part: nn.Module) -> tuple[Any, ...]:
    """Return a part and its attention processor, which is not itself a part unless it is a module."""
    processor = vars(part).get("processor")
    return (part,) if not hasattr(processor, "__dict__") else (part, processor)


def _copied(part: Any) -> dict[str, Any]:
    """Copy a part's attributes one level deep; weight dictionaries are not copied, or old weights would be kept."""
    return {
        name: copy(value) if isinstance(value, dict | list | set) and name not in _WEIGHTS else value
        for name, value in vars(part).items()
    }
