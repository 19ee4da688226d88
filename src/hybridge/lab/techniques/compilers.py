"""Compilers: torch.compile of the whole denoiser or of its repeated blocks, and what came before it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..harness.environment import no_cpp_compiler
from .evidence import CallLog, watching
from .pipeline_context import PipelineContext
from .technique import Missing, Proof, Undo, Watch, Witness


def whole(context: PipelineContext, undo: Undo) -> Watch:
    """The denoiser as one graph."""
    # CUDA graphs spare the launches of some thousand kernels a step; they keep the memory of every shape.
    mode = "reduce-overhead" if context.device.type == "cuda" else "default"
    return _compiled(context, undo, partial(context.denoiser.compile, fullgraph=True, mode=mode))


def regional(context: PipelineContext, undo: Undo) -> Watch:
    """Each repeated block as one graph."""
    return _compiled(context, undo, partial(context.denoiser.compile_repeated_blocks, fullgraph=True))


def _compiled(context: PipelineContext, undo: Undo, start: Callable[[], object]) -> Watch:
    """Compiles in place, which happens at the first call; ``start`` says what, as one graph each."""
    before = {part: part._compiled_call_impl for part in context.denoiser.modules()}
    undo.by(torch._dynamo.reset)
    for part, call in before.items():
        undo.by(setattr, part, "_compiled_call_impl", call)
    start()
    parts = [part for part, call in before.items() if part._compiled_call_impl is not call]
    graphs_before = _graphs()

    def judge(*logs: CallLog) -> Proof:
        # A whole graph is asked for, so a call that could not run as one raises; only where compiling is
        # switched off altogether would it run as ever, and then there is no graph.
        calls, graphs = sum(map(len, logs)), _graphs() - graphs_before
        return Proof(calls > 0 and graphs > 0, f"{calls} calls of {len(logs)} compiled modules, in {graphs} graphs")

    def witness() -> Witness:
        still = [part for part in parts if part._compiled_call_impl is not None]
        return watching(judge, *(partial(CallLog, part) for part in still))()

    return witness


def _graphs() -> int:
    """Made by torch.compile in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def why_not_compiled(context: PipelineContext) -> Missing | None:
    """What torch.compile writes its kernels with, where that is not there."""
    if context.device.type == "cpu" and (reason := no_cpp_compiler()) is not None:
        return Missing("unavailable", reason)
    if context.device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return Missing("unavailable", "not installed: triton, which kernels for CUDA are written in")
    return None


def stable_fast(context: PipelineContext, _: Undo) -> Watch:
    """stable-fast traces the pipeline, and knows no way back."""
    compiler: Any = importlib.import_module("sfast.compilers.diffusion_pipeline_compiler")
    context.pipe = compiler.compile(context.pipe, compiler.CompilationConfig.Default())

    def look() -> Proof:
        traces = len(getattr(context.denoiser.forward, "_cached", ()))
        return Proof(traces > 0, f"{traces} traces of the UNet")

    return watching(look)
