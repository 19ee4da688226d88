"""A tensor on the wire: a dtype name, a shape and bytes, without a framework."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import RequestError

if TYPE_CHECKING:
    import numpy

#: Bytes per element of the four dtypes that diffusers' client can read and write.
ITEM_BYTES = {"float16": 2, "float32": 4, "bfloat16": 2, "uint8": 1}

#: Bytes per element of all dtypes that a tensor of text embeddings can have, including masks and lengths.
PROMPT_ITEM_BYTES = {**ITEM_BYTES, "int64": 8, "int32": 4, "bool": 1}

#: Video latents have five axes; no tensor of a diffusion pipeline has more.
MAX_AXES = 5

#: Number of axes of tensors that can be channels-last in memory: (B, C, H, W).
_PICTURE_AXES = 4


@dataclass(frozen=True, slots=True)
class WireTensor:
    """A tensor whose ``data`` has the elements in C order, little-endian, without a header.

    ``channels_last`` says that the sender stored (B, C, H, W) with the channels innermost in memory.  It does not
    change the order here, but convolutions then sum in another order, which affects the last bits of a result.

    The dtype is one of :data:`PROMPT_ITEM_BYTES`; latents and pixels have one of :data:`ITEM_BYTES`.

    Raises:
        RequestError: when dtype, shape and the number of bytes do not fit together.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.channels_last and len(self.shape) != _PICTURE_AXES:
            raise RequestError(
                "only [batch, channels, height, width] can be channels_last", saw=f"{len(self.shape)} axes"
            )
        need = self.nbytes_of(self.dtype, self.shape)
        got = memoryview(self.data).nbytes
        if got == need:
            return
        cause, hint = _why_another_length(memoryview(self.data), got, math.prod(self.shape), need)
        raise RequestError(
            "the body does not fit its shape",
            saw=f"{got} bytes",
            expected=f"{need} bytes = {'×'.join(map(str, self.shape))} elements"
            f" of {self.dtype} ({PROMPT_ITEM_BYTES[self.dtype]} bytes each)",
            hint=hint,
            cause=cause,
        )

    @staticmethod
    def nbytes_of(dtype: str, shape: Sequence[int]) -> int:
        """Return the bytes of a tensor of this dtype and shape.

        Raises:
            RequestError: for an unknown dtype or an impossible shape.
        """
        if dtype not in PROMPT_ITEM_BYTES:
            raise unknown_dtype(dtype)
        if not 1 <= len(shape) <= MAX_AXES or any(type(side) is not int or side < 1 for side in shape):
            raise RequestError(
                "impossible shape",
                saw=f"{len(shape)} axes" if len(shape) > MAX_AXES else list(shape),
                expected=f"1 to {MAX_AXES} axes, each at least 1",
                hint="latents are [batch, channels, height, width]; send one `shape` parameter for each axis",
            )
        return math.prod(shape) * PROMPT_ITEM_BYTES[dtype]

    @property
    def nbytes(self) -> int:
        """Size of the elements in bytes."""
        return memoryview(self.data).nbytes

    def to_numpy(self) -> numpy.ndarray[Any, Any]:
        """Return the elements as an array that shares these bytes.

        NumPy has no bfloat16: such tensors become float32, which represents every bfloat16 value exactly.
        """
        import numpy as np

        if self.dtype == "bfloat16":
            high_halves = np.frombuffer(self.data, dtype="<u2").astype("<u4") << 16
            return high_halves.view("<f4").reshape(self.shape)
        return np.frombuffer(self.data, dtype=np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape)

    @classmethod
    def from_numpy(cls, array: numpy.ndarray[Any, Any]) -> WireTensor:
        """Copy ``array`` to a wire tensor.  float64, NumPy's default, is rounded to float32.

        Raises:
            RequestError: for a dtype that the wire does not support.
        """
        import numpy as np

        if array.dtype.name == "float64":  # in any byte order
            with np.errstate(over="ignore"):  # the receiver refuses infinity where finite numbers are needed
                array = array.astype(np.float32)
        name = array.dtype.name
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        if name not in ITEM_BYTES:
            raise unknown_dtype(name)
        return cls(name, array.shape, little.tobytes(order="C"))


#: How files begin that are sent in place of a tensor's elements, and what they are.
_FILES = {
    b"\x93NUMPY": ".npy",
    b"PK\x03\x04": ".npz or .pt",
    b"\x80\x02": "pickle",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"RIFF": "WebP",
}

_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}

_BASE64 = re.compile(rb"[A-Za-z0-9+/\r\n]+={0,2}\s*")

#: Bytes that are looked at to tell base64 from numbers.
_LOOKED_AT = 4096


def _why_another_length(data: memoryview, got: int, elements: int, need: int) -> tuple[str, str]:
    """Return a cause and a hint for a body that has not the bytes of its shape and dtype."""
    start = bytes(data.cast("B")[:_LOOKED_AT])
    for signature, name in _FILES.items():
        if start.startswith(signature):
            return "file-as-tensor", f"the elements alone, not a {name} file; `hybridge decode FILE` reads files"
    if start[1:8].strip(b"\0") != start[1:8] and start[8:9] == b"{":
        return "file-as-tensor", "the elements alone, not a safetensors file; `hybridge decode FILE` reads files"
    for signature, name in _COMPRESSED.items():
        if start.startswith(signature):
            return "compressed-body", f"the bytes without {name}"
    if got >= need and len(start) > 16 and _BASE64.fullmatch(start):
        return "base64-as-bytes", 'Content-Type: tensor/base64 and {"inputs": …}, or the bytes themselves'
    fitting = [name for name, size in ITEM_BYTES.items() if elements * size == got]
    if fitting:
        return "wrong-length", f"dtype={fitting[0]}, which fits this many bytes"
    if got == elements * 8:
        return "wrong-length", "tensor.to(torch.float32) before sending: these are as many bytes as float64 has"
    if got and need % got == 0:
        return "wrong-length", f"the whole tensor, or its own shape: the body is one of {need // got} parts of it"
    hint = "send the tensor's elements alone, contiguous and in C order, with its own shape and dtype"
    return "wrong-length", hint


def unknown_dtype(name: object) -> RequestError:
    """Return the error for a dtype that latents and pixels cannot have on the wire."""
    return RequestError(
        "unknown dtype",
        saw=repr(name),
        expected="one of " + ", ".join(ITEM_BYTES),
        hint="convert the tensor to float32 before sending",
        cause="unknown-dtype",
    )
