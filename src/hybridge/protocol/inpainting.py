"""The body of a decode request with a picture and a mask beside the latents: one safetensors file.

Its tensors are ``latents``, ``image`` and ``mask``.  Its metadata may have ``channels_last``, a JSON list of the
names of those that lay channels-last in the sender's memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..errors import BadAnswer, RequestError
from .safetensors_bytes import SAFETENSORS, read_safetensors, write_safetensors
from .tensor import ITEM_BYTES, WireTensor, unknown_dtype

#: The tensors of such a body; the first is needed, and the others belong together.
TENSORS = ("latents", "image", "mask")


def read_inpainting(body: bytes) -> dict[str, WireTensor]:
    """Return the tensors by their names; they share the body's memory.

    Raises:
        RequestError: for anything else than such a file.
    """
    try:
        tensors, metadata = read_safetensors(body)
    except BadAnswer as damage:
        raise RequestError(
            "the body cannot be read as safetensors",
            saw=damage.saw,
            expected=f"{SAFETENSORS} with {', '.join(TENSORS)}",
            hint="safetensors.torch.save of a dict of contiguous tensors",
            cause="unreadable-file",
        ) from None
    unknown = sorted(set(tensors) - set(TENSORS))
    if unknown or "latents" not in tensors:
        raise RequestError(
            "the safetensors body has other tensors",
            saw=", ".join(name[:40] for name in sorted(tensors)[:8]) or "none",
            expected=f"{', '.join(TENSORS)}, the last two together or not at all",
        )
    flags = _flags(metadata)
    for tensor in tensors.values():
        if tensor.dtype not in ITEM_BYTES:
            raise unknown_dtype(tensor.dtype)
    return {
        name: WireTensor(tensor.dtype, tensor.shape, tensor.data, name in flags) for name, tensor in tensors.items()
    }


def _flags(metadata: Mapping[str, str]) -> list[str]:
    try:
        flags = json.loads(metadata.get("channels_last", "[]"))
    except (ValueError, RecursionError):
        flags = None
    if not isinstance(flags, list) or not all(name in TENSORS for name in flags):
        raise RequestError(
            "channels_last in the safetensors metadata has another form",
            saw=repr(metadata["channels_last"][:60]),
            expected='a JSON list of names of tensors, such as ["image"]',
        )
    return flags


def write_inpainting(latents: WireTensor, image: WireTensor, mask: WireTensor) -> bytes:
    """Return the body that :func:`read_inpainting` reads."""
    tensors = dict(zip(TENSORS, (latents, image, mask), strict=True))
    flags = [name for name, tensor in tensors.items() if tensor.channels_last]
    return write_safetensors(tensors, {"channels_last": json.dumps(flags)} if flags else {})
