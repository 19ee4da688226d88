"""Weights that leave memory, and come back from where they were loaded, or from copies in files.

A module whose weights are away is still the same module: its hooks, its processors and whatever else techniques
left on it stay.  Of each weight an *outline* remains, a tensor on the meta device, which says in which dtype and
layout it is to come back.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import RequestError

#: Name of a layer in the one that peft puts around it when a LoRA is loaded.
_WRAPPED = "base_layer"

#: Kernels may take another path, and round otherwise, where memory is aligned otherwise.
_ALIGNED_BYTES = 64


class WeightBackup:
    """Copies of weights, bit for bit, in files of a folder of their own, which goes with the context's.

    For the way back of a technique that rounds them.  What was there need not be what the pipeline was loaded from:
    a VAE was replaced, a LoRA merged.  Memory would hold both precisions at once, which halving the precision is
    meant to save.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="backup-", dir=folder))
        self._count = 0

    def save(self, tensor: torch.Tensor) -> Callable[[torch.device], torch.Tensor]:
        """Writes a tensor; what is returned reads it back, with its dtype, strides and alignment, onto a device.

        Raises:
            OSError: when the disk is full.
        """
        path = self._folder / str(self._count)
        self._count += 1
        # Channels-last and the like: written as they lie in memory.
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        dense = tensor.detach().cpu().permute(order).contiguous()
        dtype, shape, offset = tensor.dtype, dense.shape, tensor.data_ptr() % _ALIGNED_BYTES
        path.write_bytes(_buffer(dense.reshape(-1).view(torch.uint8)))

        def read(device: torch.device) -> torch.Tensor:
            count = shape.numel() * dtype.itemsize
            memory = torch.empty(count + _ALIGNED_BYTES, dtype=torch.uint8)
            begin = (offset - memory.data_ptr()) % _ALIGNED_BYTES
            with path.open("rb") as file:
                file.readinto(_buffer(memory[begin : begin + count]))
            there = memory[begin : begin + count].view(dtype).view(shape)
            inverse = [order.index(axis) for axis in range(len(order))]
            return there.permute(inverse).to(device)

        return read

    def clear(self) -> None:
        """Removes the files."""
        shutil.rmtree(self._folder)


def _buffer(memory: torch.Tensor) -> Any:
    return memory.numpy()


def weights(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Every parameter and buffer by its name, shared ones under each of their names."""
    return [(name, tensor) for name, _, _, tensor in _all(module)]


def are_plain(module: torch.nn.Module) -> bool:
    """Whether its weights are ordinary tensors that are there: not quantised, not offloaded."""
    plain = (torch.nn.Parameter, torch.Tensor)
    return all(type(tensor) in plain and tensor.device.type != "meta" for _, tensor in weights(module))


def restore(
    module: torch.nn.Module, kept: Mapping[str, Callable[[torch.device], torch.Tensor]], device: torch.device
) -> None:
    """Gives a module the weights that were put aside under these names; those of other names stay."""

    def put_back(name: str, tensor: torch.Tensor) -> torch.Tensor:
        own = name.replace(f".{_WRAPPED}.", ".")
        return _like(kept[own](device), tensor) if own in kept else tensor

    _replace(module, put_back)


def send_away(module: torch.nn.Module) -> list[weakref.ref[torch.Tensor]]:
    """Leaves outlines in the place of all weights; the references are dead as soon as nobody else holds one."""
    references = [weakref.ref(tensor) for _, tensor in weights(module)]
    _replace(module, lambda _, tensor: outline(tensor))
    return references


def bring_back(module: torch.nn.Module, fresh: torch.nn.Module, device: torch.device) -> None:
    """Gives a module the weights of one that was loaded anew, in the dtype and layout that it had.

    Args:
        module: Whose weights are away.
        fresh: Of the same architecture.  Its weights go over to ``module``.

    Raises:
        RequestError: when the two modules' weights have other names; nothing has changed then.
    """
    check_alike(module, fresh)
    sources = dict(weights(fresh))
    _replace(module, lambda name, tensor: filled(tensor, sources[name], device))


def check_alike(module: torch.nn.Module, fresh: torch.nn.Module) -> None:
    """Raises :class:`RequestError` unless the two modules' weights have the same names."""
    names, others = ({name for name, _ in weights(one)} for one in (module, fresh))
    if names != others:
        raise RequestError(
            "the weights on disk are not those of this module",
            saw=", ".join(sorted(names ^ others)[:3]),
            expected=f"the {len(others)} of the disk",
        )


def check_same(module: torch.nn.Module, fresh: torch.nn.Module) -> None:
    """Raises :class:`RequestError` unless ``fresh`` has the weights of ``module``, once they are in its dtypes."""
    check_alike(module, fresh)
    sources = dict(weights(fresh))
    for name, tensor in weights(module):
        there = _as(tensor, sources[name], tensor.device)
        if there.shape != tensor.shape or sum_of_bits(there) != sum_of_bits(tensor):
            raise RequestError(
                f"{name} on disk is not the weight that this pipeline has",
                expected="weights as they came from the files",
                hint=SAVE_FIRST,
            )


#: What to do with weights that no file has.
SAVE_FIRST = "save_pretrained, then from_pretrained: a part was replaced, or a LoRA merged into one"


def sum_of_bits(tensor: torch.Tensor) -> int:
    """A sum that does not depend on order: equal on every device and in every layout."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(tensor.detach().view(integers[tensor.element_size()]).sum(dtype=torch.int64))


def outline(tensor: torch.Tensor) -> torch.Tensor:
    """What remains of a weight that is away: its shape, dtype and strides, on the meta device."""
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return _like(made, tensor)


def filled(outline: torch.Tensor, source: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A weight as its outline has it, with the numbers of another one."""
    return _like(_as(outline, source, device), outline)


def _all(module: torch.nn.Module) -> Iterator[tuple[str, dict[str, Any], str, torch.Tensor]]:
    """(name, the table that it stands in, its key there, the tensor), shared ones under each of their names."""
    for prefix, owner in module.named_modules():
        for table in (owner._parameters, owner._buffers):
            for key, tensor in table.items():
                if tensor is not None:
                    yield f"{prefix}.{key}" if prefix else key, table, key, tensor


def _replace(module: torch.nn.Module, made: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Puts what is made of its name and itself in the place of every weight; what was shared is shared again."""
    replaced: dict[int, torch.Tensor] = {}
    for name, table, key, tensor in list(_all(module)):
        if id(tensor) not in replaced:
            replaced[id(tensor)] = made(name, tensor)
        table[key] = replaced[id(tensor)]


def _as(outline: torch.Tensor, source: torch.Tensor, device: torch.device) -> torch.Tensor:
    if (source.dtype, source.stride(), source.device) == (outline.dtype, outline.stride(), device):
        return source.detach()
    there = torch.empty_strided(outline.shape, outline.stride(), dtype=outline.dtype, device=device)
    return there.copy_(source.detach())


def _like(tensor: torch.Tensor, former: torch.Tensor) -> torch.Tensor:
    is_parameter = isinstance(former, torch.nn.Parameter)
    return torch.nn.Parameter(tensor, requires_grad=former.requires_grad) if is_parameter else tensor
