"""Files of latents: those of `hybridge encode` and `hybridge decode`, ComfyUI's and trainers'.

A file says in which space its latents are.  It has no workflow and no prompt, which ComfyUI's own files have.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from hybridge.errors import HybridgeError
from hybridge.protocol import read_latents
from hybridge.protocol.safetensors_bytes import write_safetensors
from hybridge.protocol.torch import from_torch, to_torch

from .latent_forms import LatentConversion
from .messages import NodeError

#: The suffix of ComfyUI's own files, which have a LATENT as it is.
_COMFYUI = ".latent"

#: Suffixes of the files that can be loaded.
SUFFIXES = (".safetensors", _COMFYUI, ".npz", ".npy", ".pt")

#: The folder below ComfyUI's output in which latents are saved, as its own are.
FOLDER = "latents"

#: Channels of the latents that ComfyUI has as diffusers' pipelines do: FLUX.2's, folded, and LTX-Video's.
_NORMALISED = 128

#: The side of the squares that ComfyUI folds for FLUX.2.
_FOLD = 2


def tensor_of(samples: dict[str, Any]) -> torch.Tensor:
    """Return the latents of a LATENT; of LTX-2's, which has sound beside them, those of the frames."""
    latents = samples["samples"]
    first: torch.Tensor = latents.unbind()[0] if latents.is_nested else latents
    return first


def save_latents(
    samples: dict[str, Any], path: Path, model: str | None = None, conversion: LatentConversion | None = None
) -> None:
    """Write a LATENT to a safetensors file.

    Args:
        samples: A LATENT; its noise mask is not written.
        path: The file, which must not exist.
        model: The server's name for the model of the latents, if it is known.
        conversion: To that model's latents; without it, LTX-2's and Cosmos's are taken for LTX-Video's and Wan's.
    """
    latents, about = tensor_of(samples), {"space": "vae"}
    if conversion is not None:
        latents = torch.cat([conversion.to_server(one, adds_noise=False) for one in latents.split(1)])
        about = {"model": str(model), "space": _space_of(conversion)}
    elif latents.shape[1] == _NORMALISED:
        about["space"] = "pipeline"
        if latents.ndim == 4:
            latents = torch.nn.functional.pixel_shuffle(latents, _FOLD)
    data = write_safetensors({"latents": from_torch(latents.contiguous())}, about)
    with path.open("xb") as file:
        file.write(data)


def load_latents(
    path: Path, *, assumes_vae_space: bool = False, conversion: LatentConversion | None = None
) -> dict[str, Any]:
    """Read a LATENT from a file.

    Args:
        path: A safetensors file, ComfyUI's ``.latent``, ``.npz``, ``.npy`` or ``.pt``.
        assumes_vae_space: What a file means that does not say its space; else it is refused.
        conversion: From the latents of the model that made the file, if it is known.

    Raises:
        NodeError: for a file that cannot be read, or latents that ComfyUI has in another space.
    """
    try:
        file = read_latents(path)
    except HybridgeError as error:
        # Without its folder, because errors are stored with the workflow.
        raise NodeError(str(error).replace(str(path), path.name)) from None
    except OSError as error:
        raise NodeError(f"{path.name} cannot be read: {error.strerror}") from None
    latents = to_torch(file.tensor).to(torch.float32)
    if file.scaling is None and not assumes_vae_space:
        raise NodeError(
            f"{path.name} does not say in which space its latents are: choose `space: vae`, if they are unscaled."
        )
    space = "pipeline" if file.scaling is not None and file.scaling.by == "model" else "vae"
    if conversion is not None and path.suffix != _COMFYUI:
        if space != _space_of(conversion):
            raise NodeError(
                f"{path.name} has latents in the space {space!r}, but those of this model that ComfyUI takes are in"
                f" the space {_space_of(conversion)!r}."
            )
        return {"samples": torch.cat([conversion.to_comfyui(one) for one in latents.split(1)])}
    return {"samples": _of_pipelines(latents, path.name) if space == "pipeline" else latents}


def _space_of(conversion: LatentConversion) -> str:
    """Return the space of latents that a conversion gives, as files say it."""
    return "pipeline" if conversion.scaling.by == "model" else "vae"


def _of_pipelines(latents: torch.Tensor, name: str) -> torch.Tensor:
    """Return latents that pipelines have scaled as ComfyUI has them, where that is the same."""
    if latents.ndim == 4 and latents.shape[1] * _FOLD**2 == _NORMALISED:
        return torch.nn.functional.pixel_unshuffle(latents, _FOLD)
    if latents.shape[1] == _NORMALISED:
        return latents
    raise NodeError(
        f"{name} has latents as diffusers' pipelines scale them; ComfyUI has those of this model unscaled:"
        " save them with `hybridge encode --no-scaled`, or decode them with `hybridge decode`."
    )


def fingerprint_of(path: Path) -> str:
    """Return a hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def names_of(input_folder: Path, output_folder: Path) -> list[str]:
    """Return the files that can be loaded, as ComfyUI names them: those that were saved say `[output]`."""
    found = [path.name for path in sorted(input_folder.glob("*")) if path.suffix in SUFFIXES]
    saved = sorted((output_folder / FOLDER).glob("*"))
    return found + [f"{FOLDER}/{path.name} [output]" for path in saved if path.suffix in SUFFIXES]
