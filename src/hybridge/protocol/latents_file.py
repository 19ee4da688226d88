"""Read latents from files of several programs, and tell in which space they are.

========================  ==========================================  =======================================
written by                tensor                                      space
========================  ==========================================  =======================================
``hybridge encode``       ``latents``                                 as in the file's metadata
ComfyUI                   ``latent_tensor``                           the VAE's; without the marker
                                                                      ``latent_format_version_0``, times 0.18215
sd-scripts                ``latents`` or ``latents_HxW``, (C, h, w)   the VAE's; the pipelines' in ``*_flux.npz``
musubi-tuner              ``latents_FxHxW_dtype``, (C, F, h, w)       the pipelines' for FLUX.1, else unknown
anything else             ``latents``, or the only tensor             unknown
========================  ==========================================  =======================================

A file whose meaning is unclear, which could give a wrong picture, is refused.
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

#: The factor by which ComfyUI multiplied the latents of all models before it wrote the marker.
_COMFY_FACTOR = 0.18215

_MUSUBI = re.compile(r"latents_(\d+)x(\d+)x(\d+)_\w+")
_KOHYA = re.compile(r"latents(?:_flipped)?(?:_(\d+)x(\d+))?")

#: Names that sd-scripts stores in addition to the latents; newer versions append the latents' size.
_KOHYA_BESIDE = ("original_size", "crop_ltrb")

#: The models whose latents sd-scripts keeps in files with these endings.
_KOHYA_MODELS = {"sd": "sd-v1", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux"}

#: Channels of SD v1 and SDXL.  sd-scripts stores the 16 channels of SD3 in VAE space, but those of FLUX.1 scaled.
_SD_CHANNELS = 4


@dataclass(frozen=True, slots=True)
class LatentsFile:
    """Latents, and the facts about them from their file.

    Attributes:
        tensor: (B, C, h, w), or as stored if the file follows no known program's convention.
        scaling: The space of the latents, or None if the file does not say it.
        model: The model of the latents, if the file says it.
        is_known: Whether the file follows a known program's convention.
        notes: Changes and assumptions, as sentences for the user.
    """

    tensor: WireTensor
    scaling: Scaling | None
    model: str | None = None
    is_known: bool = False
    notes: tuple[str, ...] = ()


def read_latents(path: str | Path, tensor: str | None = None) -> LatentsFile:
    """Read the latents of a file; float64 is rounded to float32.

    Args:
        path: A safetensors file, among them ComfyUI's ``.latent``; ``.npz`` or ``.npy``, which need NumPy; ``.pt``,
            which needs torch and is read with ``weights_only``.
        tensor: The name of the tensor, if a file has several.

    Raises:
        RequestError: when it is not such a file, or has several tensors and none is known to be the latents.
        TooLarge: for more than 1 GiB.
        OSError: when the file cannot be opened.
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
    """Return the names that trainers give to latents, without the flipped ones."""
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
    """Convert as ComfyUI does for its old files, in float32; a tiny autoencoder accepts no factor in a request."""
    numbers = numpy_or_refuse()
    return WireTensor.from_numpy(latents.to_numpy().astype(numbers.float32) * numbers.float32(1 / _COMFY_FACTOR))


def _is_kohyas(file: TensorFile, name: str) -> bool:
    ending = name.removeprefix("latents").removeprefix("_flipped")
    return any(beside + ending in file.tensors for beside in _KOHYA_BESIDE)


def _read_kohya(path: Path, name: str, stored: Stored) -> LatentsFile:
    tensor = _with_batch(name, stored.read(name), 3)
    scaling: Scaling | None = None
    model = _KOHYA_MODELS.get(path.stem.rpartition("_")[2])
    if model == "flux":
        scaling = _PIPELINES
    elif tensor.shape[1] == _SD_CHANNELS or model == "sd3":
        scaling = _VAE_SPACE
    return LatentsFile(tensor, scaling, model, is_known=True)


def _read_musubi(file: TensorFile, name: str, stored: Stored, sides: tuple[int, ...]) -> LatentsFile:
    if stored.shape[-2:] != sides[1:] or (len(stored.shape) == 4 and stored.shape[1] != sides[0]):
        raise RequestError(
            f"the tensor `{name}` does not have the size that its name says", saw=f"shape {list(stored.shape)}"
        )
    tensor = _without_frame(_with_batch(name, stored.read(name), len(stored.shape)))
    is_flux = str(file.about.get("architecture", "")).startswith("flux_kontext")
    return LatentsFile(tensor, _PIPELINES if is_flux else None, is_known=True)


def _with_batch(name: str, tensor: WireTensor, axes: int) -> WireTensor:
    """Return latents of one picture, (C, h, w) or (C, F, h, w), with a batch axis in front."""
    if len(tensor.shape) != axes or axes not in (3, 4):
        raise RequestError(
            f"the tensor `{name}` is not what trainers write",
            saw=f"shape {list(tensor.shape)}",
            expected="[C, h, w]",
        )
    return WireTensor(tensor.dtype, (1, *tensor.shape), tensor.data)


def _without_frame(tensor: WireTensor) -> WireTensor:
    """Return (B, C, 1, h, w), a video of one frame, as (B, C, h, w)."""
    batch, *rest = tensor.shape
    if len(rest) != 4 or rest[1] != 1:
        return tensor
    return WireTensor(tensor.dtype, (batch, rest[0], *rest[2:]), tensor.data)
