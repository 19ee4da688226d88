"""How ComfyUI has the latents of each VAE, compared with the server, by diffusers' name of the class.

ComfyUI's sampler scales latents before and after it works (``process_in`` and ``process_out`` in
``comfy/latent_formats.py``), so a LATENT between nodes is what ``comfy/sd.py`` hands to the VAE's module.  Where
that module normalises nothing, a LATENT is in the space of the VAE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from hybridge.protocol import Scaling

from .messages import NodeError


@dataclass(frozen=True, slots=True)
class LatentForm:
    """What a LATENT is.

    Attributes:
        space: ``vae``: unscaled.  ``pipeline``: as diffusers' pipelines scale them, because ComfyUI's module does
            the same inside.  ``statistics``: ComfyUI's module normalises by buffers among its weights, but
            diffusers' pipelines give latents without that.
        fold: The side of the squares of latents that are one of fold² times the channels.
        has_frames: Whether there is a frame axis; None if that is as in diffusers.
        colours: Channels of a decoded picture.
        drops_frames: Whether the last frames of a video are left out if its module does not encode them.
    """

    space: Literal["vae", "pipeline", "statistics"] = "vae"
    fold: int = 1
    has_frames: bool | None = None
    colours: int = 3
    drops_frames: bool = False


_FORMS = {
    "AutoencoderKL": LatentForm(),
    "AutoencoderKLCogVideoX": LatentForm(),
    # By a mean and a deviation of each channel and frame, and the factor 0.5.
    "AutoencoderKLCosmos": LatentForm("pipeline"),
    "AutoencoderKLFlux2": LatentForm("pipeline", fold=2),
    "AutoencoderKLHunyuanImage": LatentForm(),
    "AutoencoderKLHunyuanVideo": LatentForm(),
    "AutoencoderKLHunyuanVideo15": LatentForm(drops_frames=True),
    "AutoencoderKLLTX2Video": LatentForm("statistics", drops_frames=True),
    "AutoencoderKLLTXVideo": LatentForm("pipeline", drops_frames=True),
    "AutoencoderKLMochi": LatentForm(),
    "AutoencoderKLQwenImage": LatentForm(),
    "AutoencoderKLQwenImage21": LatentForm(has_frames=False, colours=4),
    "AutoencoderKLWan": LatentForm(drops_frames=True),
    "AutoencoderTiny": LatentForm(),
}

#: What ComfyUI gives a decoder that is conditioned on a timestep, and the part of noise in its scaled latents.
_TIMESTEP, _NOISE = 0.05, 0.025

_NO_SUCH_VAE = "ComfyUI has no such VAE, or none whose latents are known to be the same"

_SPACE_OF_FILE = "ComfyUI tells the space of its latents by the file"

#: Why other classes are refused.
_REFUSED = {
    "AutoencoderKLHunyuanImageRefiner": "ComfyUI has two of its latent frames in one while it samples",
    "AutoencoderKLTemporalDecoder": "ComfyUI has the frames of a video as a batch of pictures",
    "AutoencoderTAEHV": _SPACE_OF_FILE,
    "AutoencoderTAESD": _SPACE_OF_FILE,
}


def form_of(facts: Mapping[str, Any]) -> LatentForm:
    """Return how ComfyUI has the latents of a model.

    Args:
        facts: The model's entry of ``/v1/models``.

    Raises:
        NodeError: for a class that ComfyUI does not have, or whose latents it has in another way.
    """
    kind = str(facts.get("class"))
    if kind in _FORMS:
        return _FORMS[kind]
    raise NodeError(
        f"{facts['name']!r} is a VAE of the class {kind[:60]}, which does not work here:"
        f" {_REFUSED.get(kind, _NO_SUCH_VAE)}. These classes work: {', '.join(_FORMS)}."
    )


class LatentConversion:
    """From a LATENT to the latents that a server's model takes, and back.

    Args:
        facts: The model's entry of ``/v1/models``, with the statistics of its latents if they are needed.

    Attributes:
        form: What a LATENT is.
        has_frames: Whether it has a frame axis.
        scaling: What is asked of the server.
        decode_timestep: What a decoder that is conditioned on a timestep is given; None for all others.

    Raises:
        NodeError: as for :func:`form_of`, and where the server does not know the statistics.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.form = form_of(facts)
        self._axes = str(facts.get("axes"))
        self._is_video = bool(facts.get("frames"))
        in_diffusers = "T" in self._axes
        self.has_frames = in_diffusers if self.form.has_frames is None else self.form.has_frames
        self.scaling = Scaling("model") if self.form.space == "pipeline" else Scaling()
        conditioned = bool((facts.get("config") or {}).get("timestep_conditioning"))
        self.decode_timestep = _TIMESTEP if conditioned else None
        self._mean, self._std = _statistics(facts) if self.form.space == "statistics" else (None, None)

    def to_server(self, latents: torch.Tensor, *, adds_noise: bool = True) -> torch.Tensor:
        """Convert (1, C, h, w) or (1, C, f, h, w) of ComfyUI; a picture has no frames on the wire.

        Args:
            latents: The latents of one item.
            adds_noise: Whether those for a decoder that is told of noise get it, as before a decode in ComfyUI.
        """
        if self.form.fold > 1:
            latents = torch.nn.functional.pixel_shuffle(latents, self.form.fold)
        if adds_noise and self.decode_timestep is not None:
            latents = _NOISE * torch.randn_like(latents) + (1.0 - _NOISE) * latents
        if self._mean is not None:
            latents = latents * self._std + self._mean
        if self.has_frames and not self._is_video:
            latents = latents[:, :, 0]
        return latents.transpose(1, 2) if self._axes == "BTCHW" else latents

    def to_comfyui(self, latents: torch.Tensor) -> torch.Tensor:
        """Convert latents that the server made, with one item."""
        if self._axes == "BTCHW":
            latents = latents.transpose(1, 2)
        if latents.ndim == 4 and self.has_frames:
            latents = latents.unsqueeze(2)
        if latents.ndim == 5 and not self.has_frames:
            latents = latents[:, :, 0]
        if self._mean is not None:
            latents = (latents - self._mean) / self._std
        if self.form.fold > 1:
            latents = torch.nn.functional.pixel_unshuffle(latents, self.form.fold)
        return latents


def lacks_statistics(facts: Mapping[str, Any]) -> bool:
    """Return whether a server has to load a model before its latents can be converted."""
    return form_of(facts).space == "statistics" and not facts.get("statistics")


def _statistics(facts: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation, each (1, C, 1, 1, 1)."""
    given = facts.get("statistics") or {}
    if {"latents_mean", "latents_std"} - set(given):
        raise NodeError(f"The server does not know the statistics of the latents of {facts['name']!r}.")
    mean, std = (torch.tensor(given[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return mean, std
