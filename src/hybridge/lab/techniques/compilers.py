"""Compilers: torch.compile of the whole denoiser or of its repeated blocks, and what came before it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..harness.environment import no_cpp_compiler
from .evidence import CallLog, looked_at
from .pipeline_context import PipelineContext
from .technique import Applied, Missing, Proof, Technique, Witness, row


def _whole(context: PipelineContext) -> Applied:
    # CUDA graphs spare the launches of some thousand kernels a step; they keep the memory of every shape.
    mode = "reduce-overhead" if context.device.type == "cuda" else "default"
    return _compiled(context, lambda denoiser: denoiser.compile(fullgraph=True, mode=mode))


def _regional(context: PipelineContext) -> Applied:
    return _compiled(context, lambda denoiser: denoiser.compile_repeated_blocks(fullgraph=True))


def _compiled(context: PipelineContext, start: Callable[[Any], object]) -> Applied:
    """Compiles in place, which happens at the first call; ``start`` says what, as one graph each."""
    before = {part: part._compiled_call_impl for part in context.denoiser.modules()}

    def undo() -> None:
        for part, call in before.items():
            part._compiled_call_impl = call
        torch._dynamo.reset()

    try:
        start(context.denoiser)
    except BaseException:
        undo()
        raise
    parts = [part for part, call in before.items() if part._compiled_call_impl is not call]
    return Applied(_through_graphs(parts, graphs_before=_graphs()), undo)


def _through_graphs(parts: list[torch.nn.Module], *, graphs_before: int) -> Callable[[], Witness]:
    """Calls of what was compiled, and the graphs made since.

    A whole graph is asked for, so a call that could not run as one raises; only where compiling is switched off
    altogether would it run as ever, and then there is no graph.
    """

    @contextmanager
    def witness() -> Iterator[Callable[[], Proof]]:
        with ExitStack() as stack:
            logs = [stack.enter_context(CallLog(part)) for part in parts if part._compiled_call_impl is not None]

            def look() -> Proof:
                calls, graphs = sum(map(len, logs)), _graphs() - graphs_before
                return Proof(
                    calls > 0 and graphs > 0, f"{calls} calls of {len(logs)} compiled modules, in {graphs} graphs"
                )

            yield look

    return witness


def _graphs() -> int:
    """Made by torch.compile in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _why_not_compiled(context: PipelineContext) -> Missing | None:
    if context.device.type == "cpu" and (reason := no_cpp_compiler()) is not None:
        return Missing("unavailable", reason)
    if context.device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return Missing("unavailable", "not installed: triton, which kernels for CUDA are written in")
    return None


def _stable_fast(context: PipelineContext) -> Applied:
    compiler: Any = importlib.import_module("sfast.compilers.diffusion_pipeline_compiler")
    context.pipe = compiler.compile(context.pipe, compiler.CompilationConfig.Default())

    def look() -> Proof:
        traces = len(getattr(context.denoiser.forward, "_cached", ()))
        return Proof(traces > 0, f"{traces} traces of the UNet")

    return Applied(looked_at(look))


def _why_not_stable_fast(context: PipelineContext) -> Missing | None:
    if getattr(context.pipe, "unet", None) is None:
        return Missing("unavailable", f"it knows UNets, and this is a {type(context.denoiser).__name__}", "compile")
    if importlib.util.find_spec("sfast") is not None:
        return None
    return Missing(
        "unavailable",
        "sfast cannot be imported; it is published as source alone and paused since 2024.  Build it with "
        "`pip install --no-build-isolation --no-deps stable-fast==1.0.5`, with nvcc or with WITH_CUDA=0",
        "compile",
    )


ROWS: tuple[Technique, ...] = (
    row("compile", _whole, _why_not_compiled),
    row("compile-regional", _regional, _why_not_compiled),
    row("stable-fast", _stable_fast, _why_not_stable_fast),
)
