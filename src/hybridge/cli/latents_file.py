"""Latents on disk: one tensor in a safetensors file, with what is needed to decode it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import RequestError
from ..protocol import WireTensor

_TENSOR = "latents"


@dataclass(frozen=True, slots=True)
class LatentsFile:
    """``model`` and ``is_scaled`` are None where the file does not say."""

    tensor: WireTensor
    model: str | None
    is_scaled: bool | None


def write_latents(path: Path, tensor: WireTensor, *, model: str, is_scaled: bool) -> None:
    """``is_scaled`` tells pipelines' latents from the VAE's own."""
    from safetensors.torch import save

    from ..protocol.torch import to_torch

    about = {"model": model, "space": "pipeline" if is_scaled else "vae"}
    path.write_bytes(save({_TENSOR: to_torch(tensor).contiguous()}, about))


def read_latents(path: Path) -> LatentsFile:
    """The tensor called ``latents``, or the only one there is.

    Raises:
        RequestError: when the file is no safetensors file, or holds several others.
    """
    from safetensors import SafetensorError, safe_open

    from ..protocol.torch import from_torch

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if _TENSOR not in names and len(names) != 1:
                raise RequestError(f"no tensor `{_TENSOR}` in {path}", saw=", ".join(names) or "no tensor")
            tensor = from_torch(file.get_tensor(_TENSOR if _TENSOR in names else names[0]))
            about = file.metadata() or {}
    except SafetensorError as error:
        raise RequestError(f"{path} is not a safetensors file", saw=str(error)) from None
    space = about.get("space")
    return LatentsFile(tensor, about.get("model"), None if space is None else space == "pipeline")
