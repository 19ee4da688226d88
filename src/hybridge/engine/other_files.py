"""What to try where files or addresses that were named hold no weights that can be loaded."""

from __future__ import annotations

import re
from pathlib import Path

#: File name endings of pickled weights.
PICKLED = (".ckpt", ".pt", ".pth", ".bin")

#: What files are that are not safetensors, by their first bytes.
_STARTS = (
    (b"version ", "a pointer of Git LFS instead of the weights; `git lfs pull` fetches them"),
    (b"GGUF", "GGUF, which is not read"),
    (b"PK", "a file of torch.save's; `hybridge convert` makes safetensors of it"),
    (b"\x80", "a pickle; `hybridge convert` makes safetensors of it"),
    (b"<", "a web page, which a failed download left"),
    (b"{", "JSON, which a failed download left"),
)

_HUB = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)|hf:/)/([^/]+/[^/:?#]+)")


def how_to_convert(path: Path, target: Path) -> str:
    """Return a hint how to convert pickled weights."""
    return f"`hybridge convert {path} {target}`; hybridge never unpickles weights that it serves"


def described(start: bytes) -> str | None:
    """Return what a file is that is not safetensors, by its first bytes; None if they do not tell."""
    return next((what for magic, what in _STARTS if start.startswith(magic)), None)


def repository_of(address: str) -> str | None:
    """Return the repository of the hub that a URL leads to; None for other addresses."""
    found = _HUB.match(address)
    return found[1] if found else None


def without_config(name: str, source: str, folder: Path) -> str | None:
    """Return a hint what to name in place of a folder that has no ``config.json``.

    Args:
        name: Name of the model.
        source: The folder or repository that was named for it.
        folder: The folder that has no ``config.json``, or a file.
    """
    if folder.is_file():
        return f"{name}={folder}"
    if (folder / "vae" / "config.json").is_file() or (folder / "model_index.json").is_file():
        return f"{name}={source}:vae, for this is a whole pipeline"
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() == ".safetensors")
    if files:
        return f"one of its files: {', '.join(f'{name}={path}' for path in files[:3])}"
    pickled = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICKLED)
    return how_to_convert(pickled[0], pickled[0].with_suffix(".safetensors")) if pickled else None
