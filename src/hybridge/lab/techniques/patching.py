"""What libraries hang on modules, ``forward`` above all, taken off again.

A forward that hangs on an object hides the one of its class.  Libraries that are told to stop hang the class's own
there, which looks the same until the class is changed, as ToMe does: then nothing happens any more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def remembered(module: torch.nn.Module, *names: str) -> Callable[[], None]:
    """What the module and all that is in it have of their own under these names; returns the way back."""
    before = [(part, {name: vars(part).get(name) for name in names}) for part in module.modules()]

    def put_back() -> None:
        for part, own in before:
            for name, value in own.items():
                if value is None:
                    vars(part).pop(name, None)
                else:
                    vars(part)[name] = value

    return put_back


def drop_idle(module: torch.nn.Module) -> None:
    """Takes off the module, and all that is in it, forwards that do what those of their classes do."""
    for part in module.modules():
        own = vars(part).get("forward")
        if getattr(own, "__self__", None) is part and getattr(own, "__func__", None) is type(part).forward:
            del part.forward
