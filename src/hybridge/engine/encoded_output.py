"""What ``encode`` returns: most classes give a posterior, and some give latents, each in a type of its own."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution, EncoderOutput, IdentityDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput

#: By class, where it is not the usual posterior: the type, and what is made of the numbers.
_OTHERS: dict[str, tuple[Any, Any]] = {
    "AutoencoderTiny": (AutoencoderTinyOutput, None),
    "AutoencoderDC": (EncoderOutput, None),
    "AutoencoderKLCosmos": (AutoencoderKLOutput, IdentityDistribution),
}


def encoded_output(class_name: str, encoded: torch.Tensor, *, return_dict: bool) -> Any:
    """Return what a class's ``encode`` returns for these numbers; without ``return_dict``, a tuple of it."""
    output, made = _OTHERS.get(class_name, (AutoencoderKLOutput, DiagonalGaussianDistribution))
    found = encoded if made is None else made(encoded)
    return output(found) if return_dict else (found,)
