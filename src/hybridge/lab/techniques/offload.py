"""Weights that wait elsewhere: on the CPU, or on a disk.

On a rig that computes on the CPU there is no elsewhere but the disk: what only moves weights to the CPU runs there,
saves nothing, and its evidence says so.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ..storages import storage_bytes
from .evidence import looked_at
from .presence import no_room, not_installed
from .rig import Rig
from .technique import Applied, Missing, Proof, Technique


def _parts(rig: Rig) -> Iterator[tuple[str, nn.Module]]:
    """The pipeline's modules by name: text encoders, denoiser, VAE."""
    for name, part in rig.pipe.components.items():
        if isinstance(part, nn.Module):
            yield name, part


def _where(rig: Rig) -> str:
    """How much lies where, once a picture is made; what is on the meta device lies nowhere."""
    held = sum(storage_bytes(part) for _, part in _parts(rig))
    if rig.device.type == "cpu":
        return f"{held:,} bytes stay in memory between calls"
    on_device = sum(
        tensor.nbytes
        for _, part in _parts(rig)
        for tensor in (*part.parameters(), *part.buffers())
        if tensor.device.type == rig.device.type
    )
    return f"{on_device:,} bytes stay on {rig.device} between calls"


def _model(rig: Rig) -> Applied:
    pipe = rig.pipe
    whole = len([*_parts(rig)])

    def look() -> Proof:
        hooked = sum(type(getattr(part, "_hf_hook", None)).__name__ == "CpuOffload" for _, part in _parts(rig))
        evidence = f"{hooked} of {whole} parts wait on the CPU until they are called; {_where(rig)}"
        nothing = "; on a CPU nothing is saved" if rig.device.type == "cpu" else ""
        return Proof(hooked > 0, evidence + nothing)

    def undo() -> None:
        pipe.remove_all_hooks()
        if rig.device.type != "cpu":
            pipe.to(rig.device)

    # The device must be said: without an accelerator, diffusers refuses to choose one.
    pipe.enable_model_cpu_offload(device=rig.device)
    return Applied(looked_at(look), undo)


def _by_layer(offload: Callable[[nn.Module, Rig, str], None], nothing_saved: str) -> Callable[[Rig], Applied]:
    """Layers whose weights are on the meta device except while they run; accelerate's hooks, removed by diffusers.

    Args:
        offload: Hooks one part, given its name.
        nothing_saved: What to add to the evidence on a CPU.
    """

    def apply(rig: Rig) -> Applied:
        def look() -> Proof:
            weights = [parameter for _, part in _parts(rig) for parameter in part.parameters()]
            away = sum(parameter.device.type == "meta" for parameter in weights)
            evidence = f"{away} of {len(weights)} weights are away between calls; {_where(rig)}"
            return Proof(away > 0, evidence + (nothing_saved if rig.device.type == "cpu" else ""))

        try:
            for name, part in _parts(rig):
                if name not in rig.pipe._exclude_from_cpu_offload:  # safety checkers, which hooks break
                    offload(part, rig, name)
        except BaseException:
            rig.pipe.remove_all_hooks()
            raise
        return Applied(looked_at(look), rig.pipe.remove_all_hooks)

    return apply


def _to_cpu(part: nn.Module, rig: Rig, _: str) -> None:
    # diffusers' own call makes "cpu:0" of the CPU, and then fails at the first forward; this is what it calls.
    accelerate = importlib.import_module("accelerate")
    accelerate.cpu_offload(part, rig.device, offload_buffers=_has_weights_of_its_own(part))


def _to_disk(part: nn.Module, rig: Rig, name: str) -> None:
    accelerate = importlib.import_module("accelerate")
    # A new folder each time: into one with an index accelerate writes nothing, and reads what was there before.
    folder = tempfile.mkdtemp(prefix=f"{name}-", dir=rig.folder)
    accelerate.disk_offload(
        part, folder, execution_device=rig.device, offload_buffers=_has_weights_of_its_own(part)
    )


def _has_weights_of_its_own(part: nn.Module) -> bool:
    """diffusers' rule for whether buffers go along: only where the part itself, not a layer in it, has weights."""
    return len(part._parameters) > 0


def _in_groups(*, disk: bool) -> Callable[[Rig], Applied]:
    def apply(rig: Rig) -> Applied:
        from diffusers.hooks import apply_group_offloading

        folders: list[Path] = []
        for name, part in _parts(rig):
            more: dict[str, Any] = {}
            if disk and not _has_tied_weights(part):
                # A folder for each part: files are named for layers, and two parts have layers of one name.
                folders.append(Path(tempfile.mkdtemp(prefix=f"{name}-", dir=rig.folder)))
                more["offload_to_disk_path"] = str(folders[-1])
            elif rig.device.type == "cuda":
                more["use_stream"] = True  # the next layer comes while this one runs
            apply_group_offloading(part, onload_device=rig.device, offload_type="leaf_level", **more)

        def look() -> Proof:
            hooked = sum(_has_group_hook(module) for _, part in _parts(rig) for module in part.modules())
            files = [file for folder in folders for file in folder.iterdir()]
            if disk:
                there = f"{sum(file.stat().st_size for file in files):,} bytes in {len(files)} files"
            else:
                there = _where(rig) + ("; on a CPU nothing is saved" if rig.device.type == "cpu" else "")
            return Proof(hooked > 0 and (bool(files) or not disk), f"{hooked} layers fetch their weights; {there}")

        return Applied(looked_at(look))

    return apply


def _has_tied_weights(part: nn.Module) -> bool:
    """Whether two layers share a weight, as T5's embeddings do.

    diffusers writes such a weight once for each layer, and empties it after the first: the second file is noise.
    """
    return len([*part.named_parameters()]) < len([*part.named_parameters(remove_duplicate=False)])


def _has_group_hook(module: nn.Module) -> bool:
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and registry.get_hook("group_offloading") is not None


def _no_accelerate(_: Rig) -> Missing | None:
    return not_installed("accelerate", instead="group-offload")


def _no_disk(rig: Rig) -> Missing | None:
    return no_room(rig.folder, sum(storage_bytes(part) for _, part in _parts(rig)))


_DOCUMENTED = "https://huggingface.co/docs/diffusers/optimization/memory"

ROWS: tuple[Technique, ...] = (
    Technique(
        name="model-offload",
        title="Model CPU offload",
        claim="Each part waits on the CPU until it is called: half of the memory, little time lost.",
        source=_DOCUMENTED,
        exactness="bitwise",
        stage="offload",
        apply=_model,
        why_missing=_no_accelerate,
        group="offload",
        needs=("accelerate",),
    ),
    Technique(
        name="sequential-offload",
        title="Sequential CPU offload",
        claim="Each layer waits on the CPU until it runs: the least memory, and it tests one's patience.",
        source=_DOCUMENTED,
        exactness="bitwise",
        stage="offload",
        apply=_by_layer(_to_cpu, "; on a CPU they wait in the same memory, and nothing is saved"),
        why_missing=_no_accelerate,
        group="offload",
        needs=("accelerate",),
    ),
    Technique(
        name="disk-offload",
        title="Disk offload",
        claim="Each layer waits in a file until it runs; saves memory on a CPU too.",
        source="https://huggingface.co/docs/accelerate/package_reference/big_modeling",
        exactness="bitwise",
        stage="offload",
        apply=_by_layer(_to_disk, ""),
        why_missing=lambda rig: _no_accelerate(rig) or _no_disk(rig),
        group="offload",
        needs=("accelerate",),
    ),
    Technique(
        name="group-offload",
        title="Group offload",
        claim="Layers wait on the CPU, the next is fetched while one runs: sequential offload's memory, faster.",
        source=_DOCUMENTED,
        exactness="bitwise",
        stage="offload",
        apply=_in_groups(disk=False),
        group="offload",
    ),
    Technique(
        name="group-offload-disk",
        title="Group offload to disk",
        claim="Layers wait in files; saves memory on a CPU too.",
        source=_DOCUMENTED,
        exactness="bitwise",
        stage="offload",
        apply=_in_groups(disk=True),
        why_missing=_no_disk,
        group="offload",
    ),
)
