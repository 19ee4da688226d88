"""Text on a server, as a CONDITIONING that ComfyUI's own text encoders would give."""

from __future__ import annotations

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


def encode_text(
    server: Server, facts: dict[str, Any], text: str, *, second_text: str = "", clip_layer: int = 0
) -> Conditioning:
    """Return the CONDITIONING of a text.

    Args:
        server: The server.
        facts: The model's entry of ``/v1/models``.
        text: The text, in which weights such as ``(word:1.3)`` count.
        second_text: What the second text encoder reads instead; "" for the same.
        clip_layer: As *CLIP Set Last Layer* has it, -24 to -1; 0 for the model's own.

    Raises:
        NodeError: for a model whose text ComfyUI's convention is not known for, and every failure of the server.
    """
    model, told = str(facts["name"]), facts.get("text")
    if not isinstance(told, dict) or "comfyui" not in (told.get("conventions") or ()):
        raise NodeError(
            f"{model!r} on the server {server.profile!r} makes no text for ComfyUI: its model is of another family,"
            " or the server of an older version."
        )
    options: dict[str, Any] = {"prompt_2": second_text} if second_text else {}
    if clip_layer:
        options["clip_layer"] = clip_layer

    def send(client: AsyncClient, progress: Progress) -> Any:
        how: dict[str, Any] = {"model": model, "convention": "comfyui", "kind": "wire", "progress": progress}
        return client.encode_prompt(text, **how, **options)

    return _conditioning(server.call(send, shows_progress=True))


def _conditioning(embeddings: Embeddings) -> Conditioning:
    """Return the entries of each text; ComfyUI's own have ``pooled_output`` also where there is none."""
    found: Conditioning = []
    for index, cond in enumerate(embeddings[_COND]):
        others: dict[str, torch.Tensor | None] = {"pooled_output": None}
        others |= {name: to_torch(each[index]) for name, each in embeddings.items() if name != _COND}
        found.append([to_torch(cond), others])
    return found
