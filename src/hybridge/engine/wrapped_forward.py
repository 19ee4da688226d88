"""``forward`` of a wrapped VAE."""

from __future__ import annotations

from functools import wraps
from types import MethodType
from typing import Any

from torch import nn


class ItsForward:
    """``forward`` of the wrapped module's class; pipelines read its signature, accelerate replaces it."""

    def __get__(self, wrapper: Any, owner: type | None = None) -> Any:
        if wrapper is None:
            return self
        vae = wrapper.vae
        if wrapper.has_strips and not _does_more_when_called(vae):
            return MethodType(type(vae).forward, wrapper)  # it calls encode and decode, which are the wrapper's

        @wraps(vae.forward)
        def call(*given: Any, **named: Any) -> Any:
            return vae(*given, **named)

        return call


def _does_more_when_called(module: nn.Module) -> bool:
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return "forward" in vars(module) or any(hooks)
