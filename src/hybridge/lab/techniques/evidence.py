"""How a technique shows that it took effect: calls counted, bytes compared, types looked at.

A witness is entered around one picture and asked afterwards.  What it counts is an inner module, never the picture:
a picture can change for many reasons, and stay for one too many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from .technique import Proof, Witness


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


def watching(
    judge: Callable[..., Proof], *logs: Callable[[], AbstractContextManager[Any]]
) -> Callable[[], Witness]:
    """A witness that keeps logs while it is on.

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


def looked_at(look: Callable[[], Proof]) -> Callable[[], Witness]:
    """A witness that needs no watching: it looks at what is there once the picture is made."""
    return watching(look)


def counted(module: Callable[[], torch.nn.Module], judge: Callable[[CallLog], Proof]) -> Callable[[], Witness]:
    """A witness that counts the forwards of a module.

    Args:
        module: Which one, asked when the watching begins: techniques replace modules.
        judge: From what was counted to the proof.
    """
    return watching(judge, lambda: CallLog(module()))


def spared(
    whole: Callable[[], torch.nn.Module], part: Callable[[torch.nn.Module], torch.nn.Module], name: str
) -> Callable[[], Witness]:
    """A witness of work left out: a part ran, but less often than the whole that it belongs to.

    Args:
        whole: What is called at every step, asked when the watching begins.
        part: Something in it that is computed or left out.
        name: Of the part, for the evidence.
    """

    def judge(calls: CallLog, computed: CallLog) -> Proof:
        evidence = f"{len(computed)} of {len(calls)} forwards computed {name}"
        return Proof(0 < len(computed) < len(calls), evidence)

    return watching(judge, lambda: CallLog(whole()), lambda: CallLog(part(whole())))
