"""Compilers: torch.compile of the whole denoiser or of its repeated blocks, and what came before it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..harness.environment import no_cpp_compiler
from .evidence import CallLog, looked_at, watching
from .pipeline_context import PipelineContext
from .technique import Change, Missing, Proof, Technique, Undo, Witness, row


def _whole(context: PipelineContext) -> None:
    # CUDA graphs spare the launches of some thousand kernels a step; they keep the memory of every shape.
    mode = "reduce-overhead" if context.device.type == "cuda" else "default"
    context.denoiser.compile(fullgraph=True, mode=mode)


def _compiled(start: Callable[[PipelineContext], object]) -> Change:
    """Compiles in place, which happens at the first call; ``start`` says what, as one graph each."""

    def apply(context: PipelineContext, undo: Undo) -> Callable[[], Witness]:
        before = {part: part._compiled_call_impl for part in context.denoiser.modules()}
        undo.by(torch._dynamo.reset)
        for part, call in before.items():
            undo.by(setattr, part, "_compiled_call_impl", call)
        start(context)
        parts = [part for part, call in before.items() if part._compiled_call_impl is not call]
        graphs_before = _graphs()

        def judge(*logs: CallLog) -> Proof:
            # A whole graph is asked for, so a call that could not run as one raises; only where compiling is
            # switched off altogether would it run as ever, and then there is no graph.
            calls, graphs = sum(map(len, logs)), _graphs() - graphs_before
            evidence = f"{calls} calls of {len(logs)} compiled modules, in {graphs} graphs"
            return Proof(calls > 0 and graphs > 0, evidence)

        def witness() -> Witness:
            still = [part for part in parts if part._compiled_call_impl is not None]
            return watching(judge, *(partial(CallLog, part) for part in still))()

        return witness

    return apply


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


def _stable_fast(context: PipelineContext, _: Undo) -> Callable[[], Witness]:
    compiler: Any = importlib.import_module("sfast.compilers.diffusion_pipeline_compiler")
    context.pipe = compiler.compile(context.pipe, compiler.CompilationConfig.Default())

    def look() -> Proof:
        traces = len(getattr(context.denoiser.forward, "_cached", ()))
        return Proof(traces > 0, f"{traces} traces of the UNet")

    return looked_at(look)


ROWS: tuple[Technique, ...] = (
    row("compile", _compiled(_whole), _why_not_compiled),
    row(
        "compile-regional",
        _compiled(lambda context: context.denoiser.compile_repeated_blocks(fullgraph=True)),
        _why_not_compiled,
    ),
    row("stable-fast", _stable_fast),
)
