"""Weights that wait elsewhere: on the CPU, or on a disk.

With a pipeline that computes on the CPU there is no elsewhere but the disk: what only moves weights to the CPU
runs there, saves nothing, and its evidence says so.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from ..harness.memory import storage_bytes
from .evidence import watching
from .pipeline_context import PipelineContext, modules
from .requirements import no_room
from .technique import Missing, Proof, Undo, Watch


def _parts(context: PipelineContext) -> Iterable[nn.Module]:
    return modules(context.pipe).values()


def _where(context: PipelineContext) -> str:
    """How much lies where, once a picture is made; what is on the meta device lies nowhere."""
    held = sum(map(storage_bytes, _parts(context)))
    if context.device.type == "cpu":
        return f"{held:,} bytes stay in memory between calls"
    on_device = sum(
        tensor.nbytes
        for part in _parts(context)
        for tensor in (*part.parameters(), *part.buffers())
        if tensor.device.type == context.device.type
    )
    return f"{on_device:,} bytes stay on {context.device} between calls"


def _on_cpu(context: PipelineContext, remark: str = "on a CPU nothing is saved") -> str:
    return f"; {remark}" if context.device.type == "cpu" else ""


def by_model(context: PipelineContext, undo: Undo) -> Watch:
    """One part on the device at a time."""
    pipe = context.pipe
    whole = len([*_parts(context)])

    def look() -> Proof:
        hooked = sum(type(getattr(part, "_hf_hook", None)).__name__ == "CpuOffload" for part in _parts(context))
        evidence = f"{hooked} of {whole} parts wait on the CPU until they are called; {_where(context)}"
        return Proof(hooked > 0, evidence + _on_cpu(context))

    if context.device.type != "cpu":
        undo.by(pipe.to, context.device)
    undo.by(pipe.remove_all_hooks)
    # The device must be said: without an accelerator, diffusers refuses to choose one.
    pipe.enable_model_cpu_offload(device=context.device)
    return watching(look)


def by_layer(context: PipelineContext, undo: Undo, disk: bool) -> Watch:
    """Layers whose weights are on the meta device except while they run: accelerate's hooks."""
    accelerate = importlib.import_module("accelerate")

    def look() -> Proof:
        weights = [parameter for part in _parts(context) for parameter in part.parameters()]
        away = sum(parameter.device.type == "meta" for parameter in weights)
        nothing = "" if disk else _on_cpu(context, "on a CPU they wait in the same memory, and nothing is saved")
        return Proof(
            away > 0, f"{away} of {len(weights)} weights are away between calls; {_where(context)}{nothing}"
        )

    undo.by(context.pipe.remove_all_hooks)
    for name, part in modules(context.pipe).items():
        if name in context.pipe._exclude_from_cpu_offload:
            continue  # safety checkers, which hooks break
        # diffusers' rule for whether buffers go along: only where the part itself, not a layer in it, has weights.
        buffers = len(part._parameters) > 0
        if disk:
            # A new folder each time: into one with an index accelerate writes nothing, and reads what was there.
            folder = tempfile.mkdtemp(prefix=f"{name}-", dir=context.folder)
            accelerate.disk_offload(part, folder, execution_device=context.device, offload_buffers=buffers)
        else:
            # diffusers' own call makes "cpu:0" of the CPU, and fails at the first forward; this is what it calls.
            accelerate.cpu_offload(part, context.device, offload_buffers=buffers)
    return watching(look)


def in_groups(context: PipelineContext, _: Undo, disk: bool) -> Watch:
    """Groups of layers that come just before they run, as diffusers hooks them."""
    from diffusers.hooks import apply_group_offloading

    folders: list[Path] = []
    for name, part in modules(context.pipe).items():
        more: dict[str, Any] = {}
        if disk and not _has_tied_weights(part):
            # A folder for each part: files are named for layers, and two parts have layers of one name.
            folders.append(Path(tempfile.mkdtemp(prefix=f"{name}-", dir=context.folder)))
            more["offload_to_disk_path"] = str(folders[-1])
        elif context.device.type == "cuda":
            more["use_stream"] = True  # the next layer comes while this one runs
        apply_group_offloading(part, onload_device=context.device, offload_type="leaf_level", **more)

    def look() -> Proof:
        hooked = sum(_has_group_hook(module) for part in _parts(context) for module in part.modules())
        files = [file for folder in folders for file in folder.iterdir()]
        there = _where(context) + _on_cpu(context)
        if disk:
            there = f"{sum(file.stat().st_size for file in files):,} bytes in {len(files)} files"
        return Proof(hooked > 0 and (bool(files) or not disk), f"{hooked} layers fetch their weights; {there}")

    return watching(look)


def _has_tied_weights(part: nn.Module) -> bool:
    """Whether two layers share a weight, as T5's embeddings do.

    diffusers writes such a weight once for each layer, and empties it after the first: the second file is noise.
    """
    return len([*part.named_parameters()]) < len([*part.named_parameters(remove_duplicate=False)])


def _has_group_hook(module: nn.Module) -> bool:
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and registry.get_hook("group_offloading") is not None


def no_disk(context: PipelineContext) -> Missing | None:
    """A disk without room for all weights."""
    return no_room(context.folder, sum(map(storage_bytes, _parts(context))))
