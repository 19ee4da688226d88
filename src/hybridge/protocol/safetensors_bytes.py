"""Convert named tensors to and from the bytes of one safetensors file, without torch and the safetensors library.

The format is: eight bytes with the header's length, a JSON header (``{name: {dtype, shape, data_offsets}}``, and
texts under ``__metadata__``), then the tensors without gaps.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

from ..errors import BadAnswer
from .tensor import MAX_AXES, PROMPT_ITEM_BYTES, WireTensor

#: safetensors has no registered media type; servers of such files use this one.
SAFETENSORS = "application/x-safetensors"

#: Most bytes of the header of a body that is read.  Ours take a few kilobytes.
MOST_HEADER_BYTES = 2**20

#: Most tensors in a body that is read.
MOST_TENSORS = 4096

_NAMES = {
    **{"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8"},
    **{"int64": "I64", "int32": "I32", "bool": "BOOL"},
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def write_safetensors(tensors: Mapping[str, WireTensor], metadata: Mapping[str, str]) -> bytes:
    """Write one file.

    Tensors with larger elements come first and the header is padded to eight bytes, so that each tensor is aligned.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-PROMPT_ITEM_BYTES[item[1].dtype], item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, tensor in ordered:
        end = at + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(tensor.data for _, tensor in ordered)])


def read_safetensors(body: bytes) -> tuple[dict[str, WireTensor], dict[str, str]]:
    """Return the tensors, which share the body's memory, and the metadata.

    Raises:
        BadAnswer: when this is not such a file, or it is truncated.
    """
    length = struct.unpack_from("<Q", body)[0] if len(body) >= 8 else 0
    if not 2 <= length <= min(len(body) - 8, MOST_HEADER_BYTES):
        raise _unreadable(f"{len(body)} bytes beginning with {body[:12]!r}")
    try:
        header = json.loads(body[8 : 8 + length])
    except (ValueError, RecursionError):
        raise _unreadable("a header that is not JSON") from None
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _unreadable("a header or metadata of another form")
    if len(header) > MOST_TENSORS:
        raise _unreadable(f"{len(header)} tensors, more than {MOST_TENSORS}")
    data = memoryview(body)[8 + length :]
    tensors: dict[str, WireTensor] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(name, entry)
        if end > len(data):
            raise _unreadable(f"{len(body)} bytes, cut short in `{name[:80]}`")
        spans.append((begin, end))
        tensors[name] = WireTensor(dtype, shape, data[begin:end])
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise _unreadable("tensors that overlap or leave gaps")
        at = end
    if at != len(data):
        raise _unreadable(f"{len(data) - at} bytes beyond the last tensor")
    return tensors, metadata


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        is_right = all(type(number) is int for number in (*shape, begin, end))
        is_right = is_right and 1 <= len(shape) <= MAX_AXES and min(shape) >= 1 and begin >= 0
        is_right = is_right and end - begin == math.prod(shape) * PROMPT_ITEM_BYTES[dtype]
    except (KeyError, TypeError, ValueError):
        is_right = False
    if not is_right:
        raise _unreadable(f"a tensor `{name[:80]}` whose dtype, shape and place do not belong together")
    return dtype, shape, begin, end


def _unreadable(saw: str) -> BadAnswer:
    return BadAnswer(
        "the answer cannot be read as safetensors",
        saw=saw,
        expected=f"{SAFETENSORS} as a hybridge server sends it",
        hint="once more, for it may have been cut short on the way; else a look at the address",
    )
