"""Write latents to disk: one tensor in a safetensors file, with the metadata needed to decode it.

:mod:`hybridge.protocol.latents_file` reads these files and those of other programs.
"""

from __future__ import annotations

from pathlib import Path

from ..protocol import WireTensor


def write_latents(path: Path, tensor: WireTensor, *, model: str, is_scaled: bool) -> None:
    """Write latents to a file; ``is_scaled`` means a pipeline's normalised latents, not VAE space."""
    from safetensors.torch import save

    from ..protocol.torch import to_torch

    about = {"model": model, "space": "pipeline" if is_scaled else "vae"}
    path.write_bytes(save({"latents": to_torch(tensor).contiguous()}, about))
