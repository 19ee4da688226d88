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

from .messages import NodeError

#: Suffixes of the files that can be loaded.
SUFFIXES = (".safetensors", ".latent", ".npz", ".npy", ".pt")

#: The folder below ComfyUI's output in which latents are saved, as its own are.
FOLDER = "latents"

#: Channels of the latents that ComfyUI has as diffusers' pipelines do: FLUX.2's, folded, and LTX-Video's.
_NORMALISED = 128

#: The side of the squares that ComfyUI folds for FLUX.2.
_FOLD = 2


def save_latents(samples: dict[str, Any], path: Path) -> None:
    """Write a LATENT to a safetensors file.

    Args:
        samples: A LATENT; its noise mask is not written.
        path: The file, which must not exist.
    """
    latents = samples["samples"]
    space = "vae"
    if latents.shape[1] == _NORMALISED:
        space = "pipeline"
        if latents.ndim == 4:
            latents = torch.nn.functional.pixel_shuffle(latents, _FOLD)
    data = write_safetensors({"latents": from_torch(latents)}, {"space": space})
    with path.open("xb") as file:
        file.write(data)


def load_latents(path: Path, *, assumes_vae_space: bool = False) -> dict[str, Any]:
    """Read a LATENT from a file.

    Args:
        path: A safetensors file, ComfyUI's ``.latent``, ``.npz``, ``.npy`` or ``.pt``.
        assumes_vae_space: What a file means that does not say its space; else it is refused.

    Raises:
        NodeError: for a file that cannot be read, or latents that ComfyUI has in another space.
    """
    try:
        file = read_latents(path)
    except HybridgeError as error:
        raise NodeError(str(error)) from None
    except OSError as error:
        raise NodeError(f"{path.name} cannot be read: {error.strerror}") from None
    latents = to_torch(file.tensor).to(torch.float32)
    if file.scaling is None and not assumes_vae_space:
        raise NodeError(
            f"{path.name} does not say in which space its latents are: choose `space: vae`, if they are unscaled."
        )
    if file.scaling is not None and file.scaling.by == "model":
        latents = _of_pipelines(latents, path.name)
    return {"samples": latents}


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
