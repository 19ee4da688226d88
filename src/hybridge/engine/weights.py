"""Weight files: find them, and check from their headers that they are complete and fit a module."""

from __future__ import annotations

import json
import logging
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelUnavailable
from ..models import SingleFile, single_file, tiny_files
from ..models.config_check import shown
from .other_files import PICKLED, described, how_to_convert

STEM = "diffusion_pytorch_model"

#: The variant that is used if the plain file is missing.
FP16 = f"{STEM}.fp16.safetensors"

_log = logging.getLogger(__name__)

#: Size limit of a safetensors header and of an index; those of VAEs have about 30 KiB.
_MOST_HEADER_BYTES = 16 * 2**20

#: Bytes per number of each safetensors dtype that weights may have.
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}

_MOST_AXES = 8

#: Names of the factors beside fp8 weights; without them the weights would give wrong pictures.
_SCALE = re.compile(
    r"(?:^|[._])(?:scale_weight|weight_scale(?:_\w+)?|scale_input|input_scale|comfy_quant|scaled_fp8)$"
)

_AGAIN = "download them again"


@dataclass(frozen=True, slots=True)
class Stored:
    """The contents of weight files.

    Attributes:
        files: Their paths.
        starts: The prefix for the tensor names of each file, as :meth:`SingleFile.own_name` takes them; empty for
            files in diffusers' layout.
        shapes: The shape of each tensor, by its name.
        single: The description of a single file; its names and shapes are given in diffusers' layout.
    """

    files: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, ...]]
    single: SingleFile | None = None
    starts: tuple[str, ...] = ()

    @property
    def numbers(self) -> int:
        """Number of weights."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def find_weights(name: str, folder: Path) -> tuple[Path, ...]:
    """Return the files to load: those of an index, else the file with the plain name, else the fp16 variant.

    Raises:
        ModelUnavailable: when there are no weights, or a file of the index is missing.
    """
    index = folder / f"{STEM}.safetensors.index.json"
    if index.is_file():
        return tuple(folder / file for file in files_of_index(name, index))
    plain = folder / f"{STEM}.safetensors"
    if plain.is_file():
        return (plain,)
    if (variant := folder / FP16).is_file():
        return (variant,)
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix.lower() in PICKLED)
    variants = sorted(path.name for path in folder.glob("*.safetensors"))
    saw, hint = "no weights", None
    if variants:
        saw, hint = f"only {', '.join(variants[:4])}", f"name one of them {plain.name}"
    elif pickled:
        saw, hint = "pickled weights only", how_to_convert(folder / pickled[0], folder / plain.name)
    raise ModelUnavailable(
        f"no safetensors weights for {name}", saw=saw, expected=plain.name, hint=hint, where=folder
    )


def read_headers(name: str, folder: Path) -> Stored:
    """Return the contents of a folder's or a single file's weights from the headers; no tensor is read.

    Raises:
        ModelUnavailable: when the files are missing, truncated, or not weights.
    """
    if folder.is_file():
        return _read_single(name, folder)
    files = find_weights(name, folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        shapes |= checked_shapes(name, path)
    return Stored(files, shapes)


def _read_single(name: str, path: Path) -> Stored:
    if path.suffix.lower() in PICKLED:
        raise ModelUnavailable(
            f"the weights of {name} are pickled",
            expected="a safetensors file",
            hint=how_to_convert(path, path.with_suffix(".safetensors")),
            where=path,
        )
    others: set[str] = set()
    files, starts, held = _read_halves(name, path, others)
    single = single_file.describe(name, path, held)
    # The only number that is none of the weights is BatchNorm's counter.
    odd = [key for key in sorted(others) if held[key] and single.own_name(key) is not None]
    if odd:
        raise ModelUnavailable(f"the weights of {name} are no floats", saw=", ".join(odd[:3]), where=path)
    own = {own: shape for key, shape in held.items() if (own := single.own_name(key)) is not None}
    if single.layout == "latent diffusion":
        # On the meta device, so that diffusers' own conversion can be asked about shapes.
        blank = {key: torch.empty(shape, dtype=torch.float32, device="meta") for key, shape in own.items()}
        own = {key: tuple(tensor.shape) for key, tensor in _as_diffusers(single, blank).items()}
    return Stored(files, own, single, starts)


def _read_halves(
    name: str, path: Path, others: set[str]
) -> tuple[tuple[Path, ...], tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Return paths, name prefixes and shapes of a file, and of the other file if it is one half of a TAESD."""
    held = checked_shapes(name, path, others)
    start = tiny_files.half_of_taesd(held)
    if start is None:
        return (path,), ("",), held
    files, starts, shapes = (path,), (start,), {start + key: shape for key, shape in held.items()}
    others |= {start + key for key in others}
    other = tiny_files.other_half(path)
    if other is None or not other.is_file():
        return files, starts, shapes
    held = checked_shapes(name, other)
    other_start = tiny_files.half_of_taesd(held)
    if other_start in (None, start):
        raise ModelUnavailable(
            f"no half of {name}",
            saw=f"{len(held)} tensors, among them {', '.join(sorted(held)[:3])}"[:300],
            expected=f"what {path.name} lacks of a TAESD",
            where=other,
        )
    shapes |= {f"{other_start}{key}": shape for key, shape in held.items()}
    return (*files, other), (start, f"{other_start}"), shapes


def _as_diffusers(single: SingleFile, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if single.layout != "latent diffusion":
        return tensors
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    converted: dict[str, torch.Tensor] = convert_ldm_vae_checkpoint(tensors, dict(single.config))
    return converted | {name: tensor for name, tensor in tensors.items() if name.startswith("bn.")}


def _load(stored: Stored) -> dict[str, torch.Tensor]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    if stored.single is None:
        return {name: numbers for path in stored.files for name, numbers in load_file(path).items()}
    own: dict[str, torch.Tensor] = {}
    for path, start in zip(stored.files, stored.starts, strict=True):
        with safe_open(path, framework="pt") as file:  # only the VAE is read from a whole checkpoint
            names = {key: stored.single.own_name(start + key) for key in file.keys()}  # noqa: SIM118 - no dictionary
            own |= {name: file.get_tensor(key) for key, name in names.items() if name is not None}
    return _as_diffusers(stored.single, own)


def read_some(stored: Stored, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the named tensors of files in diffusers' layout, as far as these have them.

    Raises:
        ModelUnavailable: when a file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, torch.Tensor] = {}
    if stored.single is not None or not set(names) & set(stored.shapes):
        return found
    for path in stored.files:
        try:
            with safe_open(path, framework="pt") as file:
                found |= {key: file.get_tensor(key) for key in file.keys() if key in names}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelUnavailable("weights cannot be read", saw=error, where=path) from None
    return found


def check_fit(name: str, folder: Path, stored: Stored, module: Any) -> None:
    """Check that files contain all weights of a module; a module with random weights would give wrong pictures.

    Args:
        name: Name of the model.
        folder: The folder of the files.
        stored: The contents of the files.
        module: The module on the meta device.

    Raises:
        ModelUnavailable: when a tensor is missing or has another shape.
    """
    found: dict[str, Any] = dict(stored.shapes)
    fix = getattr(module, "_fix_state_dict_keys_on_load", None)  # diffusers accepts old names of attention layers
    if fix is not None:
        fix(found)
    needed = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    if stored.single is not None and stored.single.layout == "TAESD" and (more := sorted(set(found) - set(needed))):
        raise ModelUnavailable(  # newer TAESDs have norms and other layers, and no layer may be left out
            f"{name} is a TAESD of another architecture",
            saw=f"{more[0]}, and {len(more) - 1} more that are not known",
            expected="that of taesd, taesdxl, taesd3, taef1, taef2, taesana or TAEHV",
            where=folder,
        )
    scales = [key for key in found if key not in needed and _SCALE.search(key)]
    if scales:
        raise ModelUnavailable(
            f"the weights of {name} are quantised",
            saw=f"{scales[0]}, and {len(scales) - 1} more scales",
            expected="weights in a float dtype alone",
            hint="the file in bfloat16, float16 or float32",
            where=folder,
        )
    missing = [key for key in needed if key not in found]
    if missing:
        raise ModelUnavailable(
            f"the weights of {name} are incomplete",
            saw=f"no {missing[0]}, and {len(missing) - 1} more of {len(needed)} missing",
            expected="all that its config.json describes",
            hint=_AGAIN,
            where=folder,
        )
    for key, shape in needed.items():
        if tuple(found[key]) != shape:
            raise ModelUnavailable(
                f"the weights of {name} do not fit its config.json",
                saw=f"{key} of shape {list(found[key])}",
                expected=list(shape),
                where=folder,
            )


def fill(module: Any, stored: Stored, dtype: torch.dtype) -> Any:
    """Give a module on the ``meta`` device the stored weights, which must fit it.

    diffusers' ``from_pretrained`` gives the same result, but while it builds a module it sets torch's default dtype
    and replaces functions of ``torch.nn`` for the whole process, in which another thread may be computing.

    Raises:
        ValueError: when weights are missing.
    """
    weights = _load(stored)
    module._fix_state_dict_keys_on_load(weights)  # diffusers' own method, for names from before its version 0.18
    weights = {name: part.to(dtype) if part.is_floating_point() else part for name, part in weights.items()}
    unlike = module.load_state_dict(weights, strict=False, assign=True)
    if unlike.missing_keys:
        raise ValueError(f"it has no {', '.join(unlike.missing_keys[:3])}")
    if unlike.unexpected_keys:
        _log.warning("unused weights: %s", ", ".join(unlike.unexpected_keys[:3]))
    return module


def fill_constants(module: Any, made: Callable[[], Any]) -> None:
    """Give a loaded module the constants that no weights have, if it has any: buffers that are still on ``meta``.

    Args:
        module: The module.
        made: Returns a module of the same parts with these constants.
    """
    missing = [name for name, buffer in module.named_buffers() if buffer.device.type == "meta"]
    source = dict(made().named_buffers()) if missing else {}
    for name in missing:
        part, _, own = name.rpartition(".")
        module.get_submodule(part)._buffers[own] = source[name]


def checked_shapes(name: str, path: Path, others: set[str] | None = None) -> dict[str, tuple[int, ...]]:
    """Return each tensor's shape from a safetensors file's header, and check the header against the file.

    Args:
        name: Name of the model, for errors.
        path: The file.
        others: Receives the names of tensors that are not floats; if None, such tensors are treated as damage.

    Raises:
        ModelUnavailable: when the file is damaged, or cannot be read.
    """
    try:
        return _shapes_of(path, others)
    except _Damaged as damage:
        raise ModelUnavailable(
            f"the weights of {name} are damaged",
            saw=str(damage),
            expected="a safetensors file",
            hint=_AGAIN,
            where=path,
        ) from None
    except OSError as error:
        raise ModelUnavailable(f"the weights of {name} cannot be read", saw=error.strerror, where=path) from None


class _Damaged(Exception):
    """The reason why a file is damaged."""


def _shapes_of(path: Path, others: set[str] | None) -> dict[str, tuple[int, ...]]:
    """Return each tensor's shape.  Names of non-float tensors go to ``others``; if None, they are damage."""
    nbytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise _Damaged(f"a file of {nbytes} bytes")
        (length,) = struct.unpack("<Q", start)
        if length > min(nbytes - 8, _MOST_HEADER_BYTES):
            raise _Damaged(described(start) or f"a header of {length} bytes in a file of {nbytes}")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise _Damaged("a header that is not JSON") from None
    if not isinstance(header, dict):
        raise _Damaged("a header that is no object")
    shapes, ends = {}, [0]
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            is_right = len(shape) <= _MOST_AXES and all(isinstance(side, int) and side >= 0 for side in shape)
            is_counter = dtype == "I64" and not shape  # BatchNorm's num_batches_tracked
            is_float = (others is None and not is_counter) or dtype in _FLOATS
            is_right = is_right and (not is_float or end - begin == _FLOATS[dtype] * math.prod(shape))
        except (KeyError, TypeError, ValueError):
            is_right = False
        if not is_right or begin < 0:
            raise _Damaged(f"{key[:80]} described as {shown(entry)}")
        shapes[key] = shape
        if not is_float and others is not None:
            others.add(key)
        ends.append(end)
    held = nbytes - 8 - length
    if max(ends) != held:
        raise _Damaged(f"{held} bytes of numbers, where its header describes {max(ends)}")
    return shapes


def files_of_index(name: str, index: Path) -> list[str]:
    """Return the names of the files that an index of weights lists, after checking that all of them exist.

    Raises:
        ModelUnavailable: when the index is damaged, or a file is missing.
    """
    try:
        if index.stat().st_size > _MOST_HEADER_BYTES:
            raise ValueError
        files = sorted(set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values()))
        if not files or any(Path(file).name != file for file in files):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelUnavailable(
            f"the index of {name}'s weights is damaged", expected="a weight_map of file names", where=index
        ) from None
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise ModelUnavailable(
            f"the weights of {name} are incomplete",
            saw=f"no {missing[0]}, and {len(missing) - 1} more of {len(files)} files missing",
            hint=_AGAIN,
            where=index.parent,
        )
    return files
