"""Files of latents, written as several programs write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

#: In VAE space, for one picture of 64×48.
Z = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(1))

SIDES = {"original_size": np.array([48, 64]), "crop_ltrb": np.array([0, 0, 48, 64])}


def write_comfy(path: Path) -> None:
    marker = {"latent_format_version_0": torch.tensor([])}
    save_file({"latent_tensor": Z, **marker}, path, {"prompt": json.dumps({"1": {}})})


def write_old_comfy(path: Path) -> None:
    save_file({"latent_tensor": Z * 0.18215}, path)


def write_comfy_of_one_frame(path: Path) -> None:
    save_file({"latent_tensor": Z[:, :, None], "latent_format_version_0": torch.tensor([])}, path)


def write_kohya(path: Path) -> None:
    np.savez(path, latents=Z[0].numpy(), latents_flipped=Z[0].flip(-1).numpy(), **SIDES)


def write_kohya_of_several_sizes(path: Path) -> None:
    beside = {f"{name}_8x6": value for name, value in SIDES.items()}
    np.savez(path, latents_8x6=Z[0].numpy(), alpha_mask_8x6=np.zeros((8, 6), np.float32), **beside)


FORMS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "comfy": ("x.latent", write_comfy),
    "old comfy": ("x.latent", write_old_comfy),
    "comfy, one frame": ("x.latent", write_comfy_of_one_frame),
    "kohya": ("x.npz", write_kohya),
    "kohya, sizes in names": ("x_sdxl.npz", write_kohya_of_several_sizes),
}

#: Files that say nothing of their space.
PLAIN: dict[str, tuple[str, Callable[[Path], None]]] = {
    "safetensors": ("x.safetensors", lambda path: save_file({"anything": Z}, path)),
    "npy": ("x.npy", lambda path: np.save(path, np.asfortranarray(Z.numpy()))),
    "npz": ("x.npz", lambda path: np.savez_compressed(path, Z.numpy())),
    "pt": ("x.pt", lambda path: torch.save(Z, path)),
    "pt, a dictionary": ("x.pt", lambda path: torch.save({"latents": Z.requires_grad_(False), "step": 3}, path)),
    "pt of before torch 1.6": ("x.pt", lambda path: torch.save(Z, path, _use_new_zipfile_serialization=False)),
    "float64 in safetensors": ("x.safetensors", lambda path: save_file({"latents": Z.double()}, path)),
    "float64 in npy": ("x.npy", lambda path: np.save(path, Z.double().numpy().astype(">f8"))),
    "float64 in pt": ("x.pt", lambda path: torch.save(Z.double(), path)),
}
