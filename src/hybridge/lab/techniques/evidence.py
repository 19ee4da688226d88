"""How a technique shows that it took effect: calls counted, bytes compared, types looked at.

A witness is entered around one picture and asked afterwards.  What it counts is an inner module, never the picture:
a picture can change for many reasons, and stay for one too many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from .pipeline_context import PipelineContext
from .technique import Proof, Watch


class CallLog:
    """Forwards of a module while it is on: the batch size and the dtype of each.

    ``module.compile()`` puts hooks inside of the compiled graph, where a growing list would compile anew at every
    step; there the compiled call itself is wrapped.

    Attributes:
        batches: Size of the first axis of the first tensor given, call by call.
        dtypes: Of that tensor.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._stop: Callable[[], None] = lambda: None
        self.batches: list[int] = []
        self.dtypes: list[torch.dtype] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __enter__(self) -> CallLog:
        compiled = getattr(self._module, "_compiled_call_impl", None)
        if compiled is None:
            self._stop = self._module.register_forward_pre_hook(self._note, with_kwargs=True).remove
            return self

        def noted(*args: Any, **kwargs: Any) -> Any:
            self._note(self._module, args, kwargs)
            return compiled(*args, **kwargs)

        module: Any = self._module
        module._compiled_call_impl = noted
        self._stop = lambda: setattr(module, "_compiled_call_impl", compiled)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _note(self, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        self.batches.append(int(first.shape[0]))
        self.dtypes.append(first.dtype)


def watching(judge: Callable[..., Proof], *logs: Callable[[], AbstractContextManager[Any]]) -> Watch:
    """A witness that keeps logs while it is on; without logs it looks at what is there once the picture is made.

    Args:
        judge: From the logs to the proof.
        *logs: Each makes one, when the watching begins: techniques replace modules.
    """

    @contextmanager
    def witness() -> Iterator[Callable[[], Proof]]:
        with ExitStack() as stack:
            kept = [stack.enter_context(log()) for log in logs]
            yield lambda: judge(*kept)

    return witness


def counted(module: Callable[[], torch.nn.Module], judge: Callable[[CallLog], Proof]) -> Watch:
    """A witness that counts the forwards of a module.

    Args:
        module: Which one, asked when the watching begins: techniques replace modules.
        judge: From what was counted to the proof.
    """
    return watching(judge, lambda: CallLog(module()))


def spared(context: PipelineContext, ending: str, name: str) -> Watch:
    """A witness of work left out: a part of the denoiser ran, but less often than the denoiser was called.

    Args:
        context: Whose denoiser, asked for when the watching begins.
        ending: How the name of the part ends, the last such part where there are several.
        name: Of the part, for the evidence.
    """

    def computed() -> CallLog:
        parts = context.denoiser.named_modules()
        return CallLog([part for path, part in parts if path.endswith(ending)][-1])

    def judge(calls: CallLog, seen: CallLog) -> Proof:
        return Proof(0 < len(seen) < len(calls), f"{len(seen)} of {len(calls)} forwards computed {name}")

    return watching(judge, lambda: CallLog(context.denoiser), computed)
