"""Latents as programs keep them in files, and in which space each of these files has them.

========================  ==========================================  =======================================
written by                tensor                                      space
========================  ==========================================  =======================================
``hybridge encode``       ``latents``                                 what its metadata says
ComfyUI                   ``latent_tensor``                           the VAE's; without the marker
                                                                      ``latent_format_version_0``, times 0.18215
sd-scripts                ``latents`` or ``latents_HxW``, (C, h, w)   the VAE's; the pipelines' in ``*_flux.npz``
musubi-tuner              ``latents_FxHxW_dtype``, (C, F, h, w)       the pipelines' for FLUX.1, else unknown
anything else             ``latents``, or the only tensor             unknown
========================  ==========================================  =======================================

A file that would give another picture than its program's is refused instead of guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import RequestError
from .messages import Scaling
from .tensor import WireTensor
from .tensor_files import READABLE, Stored, TensorFile, numpy_or_refuse, open_tensors

_VAE_SPACE, _PIPELINES = Scaling(), Scaling("model")

_COMFY, _COMFY_MARKER = "latent_tensor", "latent_format_version_0"

#: What ComfyUI multiplied latents with before it wrote the marker, whatever the model was.
_COMFY_FACTOR = 0.18215

_MUSUBI = re.compile(r"latents_(\d+)x(\d+)x(\d+)_\w+")
_KOHYA = re.compile(r"latents(?:_flipped)?(?:_(\d+)x(\d+))?")

#: What sd-scripts keeps beside the latents, with the latents' size behind it in newer versions.
_KOHYA_BESIDE = ("original_size", "crop_ltrb")

#: The channels of SD v1 and SDXL.  sd-scripts keeps 16 channels of SD3 in VAE space and those of FLUX.1 not.
_SD_CHANNELS = 4


@dataclass(frozen=True, slots=True)
class LatentsFile:
    """Latents, and what their file says of them.

    Attributes:
        tensor: (B, C, h, w), or as they were stored where no program's convention is known.
        scaling: In which space they are, or None where the file does not say.
        model: The model that they are for, where the file says so.
        is_known: Whether a program is known to have written it.
        notes: What was changed or assumed, for people.
    """

    tensor: WireTensor
    scaling: Scaling | None
    model: str | None = None
    is_known: bool = False
    notes: tuple[str, ...] = ()


def read_latents(path: str | Path, tensor: str | None = None) -> LatentsFile:
    """The latents of a file; float64 is rounded to float32.

    Args:
        path: A safetensors file, among them ComfyUI's ``.latent``; ``.npz`` or ``.npy``, which need NumPy; ``.pt``,
            which needs torch and is read with ``weights_only``.
        tensor: Which one, where a file has several.

    Raises:
        RequestError: when it is none of these, or has several tensors of which none is known to be the latents.
        TooLarge: for more than 1 GiB.
        OSError: when it cannot be opened.
    """
    path = Path(path).expanduser()
    with open_tensors(path) as file:
        name = _choose(path, file, tensor)
        stored = file.tensors[name]
        read = _read(path, file, name, stored)
        notes = [f"`{name}` of {', '.join(sorted(file.tensors))}"] if len(_candidates(file.tensors)) > 1 else []
        if stored.dtype == "float64":
            notes.append("float64 was rounded to float32")
        return LatentsFile(read.tensor, read.scaling, read.model, read.is_known, (*read.notes, *notes))


def _choose(path: Path, file: TensorFile, asked: str | None) -> str:
    names = list(file.tensors)
    shown = ", ".join(f"{name} {list(file.tensors[name].shape)}" for name in names[:20]) or "no tensor"
    if asked is not None:
        if asked not in file.tensors:
            raise RequestError(f"no tensor `{asked}` in {path}", saw=shown)
        return asked
    for name in (_COMFY, "latents"):
        if name in file.tensors:
            return name
    found = _candidates(file.tensors)
    if len(found) == 1:
        return found[0]
    if len(names) == 1:
        return names[0]
    first = (found or names or [""])[0]
    raise RequestError(
        f"no tensor `latents` in {path}" if not found else f"{path} holds the latents of several pictures",
        saw=shown,
        expected=f"one tensor, or one of a known name, in {READABLE}",
        hint=f"`hybridge decode --tensor {first}`, or hybridge.protocol.read_latents(path, {first!r})"
        if names
        else None,
    )


def _candidates(names: Mapping[str, Stored]) -> list[str]:
    """Those that a trainer calls latents, without the flipped ones."""
    return [name for name in names if _MUSUBI.fullmatch(name) or (_KOHYA.fullmatch(name) and "flip" not in name)]


def _read(path: Path, file: TensorFile, name: str, stored: Stored) -> LatentsFile:
    if name == _COMFY:
        latents = _without_frame(stored.read(name))
        if _COMFY_MARKER in file.tensors:
            return LatentsFile(latents, _VAE_SPACE, is_known=True)
        notes = (f"an old file of ComfyUI's, divided by {_COMFY_FACTOR}",)
        return LatentsFile(_unscaled(latents), _VAE_SPACE, is_known=True, notes=notes)
    if match := _MUSUBI.fullmatch(name):
        sides = tuple(map(int, match.groups()))
        return _read_musubi(file, name, stored, sides)
    if file.form == "npz" and _KOHYA.fullmatch(name) and _is_kohyas(file, name):
        return _read_kohya(path, name, stored)
    space = file.about.get("space")
    scaling = {"pipeline": _PIPELINES, "vae": _VAE_SPACE}.get(str(space))
    return LatentsFile(_without_frame(stored.read(name)), scaling, file.about.get("model"), scaling is not None)


def _unscaled(latents: WireTensor) -> WireTensor:
    """As ComfyUI reads its old files, in float32.  A tiny autoencoder needs it done here: it takes no factor."""
    numbers = numpy_or_refuse()
    return WireTensor.from_numpy(latents.to_numpy().astype(numbers.float32) * numbers.float32(1 / _COMFY_FACTOR))


def _is_kohyas(file: TensorFile, name: str) -> bool:
    ending = name.removeprefix("latents").removeprefix("_flipped")
    return any(beside + ending in file.tensors for beside in _KOHYA_BESIDE)


def _read_kohya(path: Path, name: str, stored: Stored) -> LatentsFile:
    tensor = _with_batch(name, stored.read(name), 3)
    scaling: Scaling | None = None
    if path.name.endswith("_flux.npz"):
        scaling = _PIPELINES
    elif tensor.shape[1] == _SD_CHANNELS or path.name.endswith("_sd3.npz"):
        scaling = _VAE_SPACE
    return LatentsFile(tensor, scaling, is_known=True)


def _read_musubi(file: TensorFile, name: str, stored: Stored, sides: tuple[int, ...]) -> LatentsFile:
    if stored.shape[-2:] != sides[1:] or (len(stored.shape) == 4 and stored.shape[1] != sides[0]):
        raise RequestError(
            f"the tensor `{name}` does not have the size that its name says", saw=f"shape {list(stored.shape)}"
        )
    tensor = _without_frame(_with_batch(name, stored.read(name), len(stored.shape)))
    is_flux = str(file.about.get("architecture", "")).startswith("flux_kontext")
    return LatentsFile(tensor, _PIPELINES if is_flux else None, is_known=True)


def _with_batch(name: str, tensor: WireTensor, axes: int) -> WireTensor:
    """Latents of one picture, (C, h, w) or (C, F, h, w), with a batch axis before them."""
    if len(tensor.shape) != axes or axes not in (3, 4):
        raise RequestError(
            f"the tensor `{name}` is not what trainers write",
            saw=f"shape {list(tensor.shape)}",
            expected="[C, h, w]",
        )
    return WireTensor(tensor.dtype, (1, *tensor.shape), tensor.data)


def _without_frame(tensor: WireTensor) -> WireTensor:
    """(B, C, 1, h, w), a video of one frame, as (B, C, h, w)."""
    batch, *rest = tensor.shape
    if len(rest) != 4 or rest[1] != 1:
        return tensor
    return WireTensor(tensor.dtype, (batch, rest[0], *rest[2:]), tensor.data)
