"""Check whether a call may run in strips: it may not if it is differentiated, traced or mapped.

Strips write into memory that was allocated before, partly from C.  Code that follows a tensor through torch's
operators cannot follow it there, so such calls run the module's own forward.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from types import BuiltinFunctionType

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules import module as modules
from torch.utils._device import DeviceContext

#: The functions that the modules replaced by strips compute with.
_FUNCTIONS = (
    *("conv2d", "group_norm", "linear", "scaled_dot_product_attention", "interpolate", "pad"),
    *("conv3d", "normalize"),
    *("silu", "relu", "gelu", "mish"),
)


def is_recorded() -> bool:
    """Return whether the computation is being recorded by torch.compile, export or a trace.

    torch.compile can follow this check, so callers make it first.
    """
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def why_not_now(source: torch.Tensor, parameters: Iterable[nn.Parameter]) -> str | None:
    """Return why the plain forward has to run this call; None if strips may run it.

    Args:
        source: The input that would be decoded or encoded.
        parameters: The module's parameters.
    """
    if modules._has_any_global_hook():  # type: ignore[no-untyped-call]
        return "there are hooks on all modules"
    replaced = next((name for name in _FUNCTIONS if not _is_of_torch(getattr(functional, name))), None)
    if replaced is not None:
        return f"torch.nn.functional.{replaced} was replaced"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transform of torch.func is running"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is on"
    if type(source) not in (torch.Tensor, nn.Parameter):
        return f"it is given a {type(source).__name__}"
    if torch.is_grad_enabled() and (source.requires_grad or any(one.requires_grad for one in parameters)):
        return "gradients are wanted"
    keys = torch._C._TorchDispatchModeKey
    if any(torch._C._get_dispatch_mode(key) is not None for key in (keys.PROXY, keys.FAKE)):
        return "torch.fx traces it"
    modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if any(not isinstance(mode, DeviceContext) for mode in modes):
        return "a TorchFunctionMode is on"
    if source.is_cuda and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured"
    return None


def autocasts(device_type: str) -> bool:
    """Return whether autocast is on for this type of device; ``meta``, for example, has no autocast."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Return a context without autocast: the plan decides the dtypes, and autocast would round within strips."""
    return torch.autocast(device_type, enabled=False) if autocasts(device_type) else nullcontext()


def _is_of_torch(function: object) -> bool:
    made_in = getattr(function, "__globals__", {}).get("__name__", "")
    return isinstance(function, BuiltinFunctionType) or made_in.partition(".")[0] == "torch"
