"""Text on a server, as a CONDITIONING that ComfyUI's own text encoders would give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hybridge.client import AsyncClient, Embeddings
from hybridge.protocol.torch import to_torch

from .background import Progress
from .messages import NodeError
from .servers import Server

#: The tensor of a CONDITIONING; every other entry is in the dictionary beside it.
_COND = "cond"

Conditioning = list[list[Any]]


def check_text(server: Server, facts: Mapping[str, Any]) -> None:
    """Check that a model makes text for ComfyUI.

    Raises:
        NodeError: for a model whose text ComfyUI's convention is not known for.
    """
    text = facts.get("text")
    if not isinstance(text, dict) or "comfyui" not in (text.get("conventions") or ()):
        raise NodeError(
            f"{facts['name']!r} on the server {server.profile!r} makes no text for ComfyUI: its model is of another"
            " family, or the server of an older version."
        )


def encode_text(
    server: Server, facts: Mapping[str, Any], texts: Mapping[str, str], *, clip_layer: int | None = None
) -> Conditioning:
    """Return the CONDITIONING of a text.

    Args:
        server: The server.
        facts: The model's entry of ``/v1/models``.
        texts: ``prompt``, in which weights such as ``(word:1.3)`` count; ``prompt_2`` and ``prompt_3`` for what the
            second and third text encoder read instead.
        clip_layer: As *CLIP Set Last Layer* has it, -24 to -1; None for the model's own.

    Raises:
        NodeError: for a model whose text ComfyUI's convention is not known for, and every failure of the server.
    """
    check_text(server, facts)
    prompt, options = texts["prompt"], {name: text for name, text in texts.items() if name != "prompt"}
    how: dict[str, Any] = {"model": str(facts["name"]), "convention": "comfyui", "kind": "wire", **options}
    if clip_layer is not None:
        how["clip_layer"] = clip_layer

    def send(client: AsyncClient, progress: Progress) -> Any:
        return client.encode_prompt(prompt, progress=progress, **how)

    return _conditioning(server.call(send, shows_progress=True))


def _conditioning(embeddings: Embeddings) -> Conditioning:
    """Return the entries of each text; ComfyUI's own have ``pooled_output`` also where there is none."""
    found: Conditioning = []
    for index, cond in enumerate(embeddings[_COND]):
        others: dict[str, torch.Tensor | None] = {"pooled_output": None}
        others |= {name: to_torch(each[index]) for name, each in embeddings.items() if name != _COND}
        found.append([to_torch(cond), others])
    return found
