"""A test of a server that decodes: a green light that only asked for the version would prove little."""

from __future__ import annotations

import time
from typing import Any

import torch

from .messages import NodeError
from .servers import Server
from .vae import RemoteVAE

#: Side of the test's latents.
_SIDE = 8

#: A model that is not loaded may take minutes, which would be another test.
_LOADED = "loaded"


def checked(server: Server) -> str:
    """Return what a server has, and how long it took to decode a small picture of noise.

    Raises:
        NodeError: when it cannot be reached, lets nobody in, has no model, or decodes wrongly.
    """
    models = server.models()
    if not models:
        raise NodeError(f"The server {server.profile!r} has no models.")
    lines = [f"{server.profile}: {len(models)} model{'s' if len(models) > 1 else ''}"]
    lines += [
        f"- {entry.get('name')}: {', '.join(entry.get('tasks') or ())} ({entry.get('state')})" for entry in models
    ]
    decoders = [entry for entry in models if "decode" in (entry.get("tasks") or ())]
    decoders.sort(key=lambda entry: (entry.get("state") != _LOADED, entry.get("latent_channels") or 0))
    for entry in decoders:
        try:
            vae = RemoteVAE(server, entry)
        except NodeError:
            continue
        lines.append(_decoded(vae))
        break
    return "\n".join(lines)


def _decoded(vae: RemoteVAE) -> str:
    frames: list[Any] = [1] if vae.latent_dim == 3 else []
    begin = time.perf_counter()
    pixels = vae.decode(torch.zeros(1, vae.latent_channels, *frames, _SIDE, _SIDE))
    took_s = time.perf_counter() - begin
    side = _SIDE * vae.spacial_compression_decode()
    if pixels.shape[-3:] != (side, side, vae.output_channels):
        raise NodeError(f"{vae.model!r} decoded {_SIDE}×{_SIDE} latents to the shape {list(pixels.shape)}.")
    return f"{vae.model} decoded a picture of {side}×{side} pixels in {took_s:.2f} s."
