"""A tensor on the wire: a dtype name, a shape and bytes, without a framework."""

from __future__ import annotations

import math
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
        elements = math.prod(self.shape)
        fitting = [name for name, size in ITEM_BYTES.items() if elements * size == got]
        raise RequestError(
            "the body does not fit its shape",
            saw=f"{got} bytes",
            expected=f"{need} bytes = {'×'.join(map(str, self.shape))} elements"
            f" of {self.dtype} ({PROMPT_ITEM_BYTES[self.dtype]} bytes each)",
            hint=f"dtype={fitting[0]}, which fits this many bytes"
            if fitting
            else "send the tensor's elements alone, contiguous and in C order, with its own shape and dtype",
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


def unknown_dtype(name: object) -> RequestError:
    """Return the error for a dtype that latents and pixels cannot have on the wire."""
    return RequestError(
        "unknown dtype",
        saw=repr(name),
        expected="one of " + ", ".join(ITEM_BYTES),
        hint="convert the tensor to float32 before sending",
    )
