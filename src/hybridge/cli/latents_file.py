"""Latents on disk: one tensor in a safetensors file, with what is needed to decode it again.

:mod:`hybridge.protocol.latents_file` reads it, and the files of other programs.
"""

from __future__ import annotations

from pathlib import Path

from ..protocol import WireTensor


def write_latents(path: Path, tensor: WireTensor, *, model: str, is_scaled: bool) -> None:
    """``is_scaled`` tells pipelines' latents from the VAE's own."""
    from safetensors.torch import save

    from ..protocol.torch import to_torch

    about = {"model": model, "space": "pipeline" if is_scaled else "vae"}
    path.write_bytes(save({"latents": to_torch(tensor).contiguous()}, about))
