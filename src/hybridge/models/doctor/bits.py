"""Whether numbers that are nonsense make sense in another dtype, in another byte order, or are freed memory.

It works on bytes and needs no library.  It is only asked when numbers look wrong, and looks at a sample.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from .causes import Finding

#: Bytes that are looked at, from the middle of a tensor: its beginning may be damaged.
_SAMPLE_BYTES = 16 * 1024

#: Bytes that decide whether the numbers look wrong at all: every request pays for these.
_FIRST_BYTES = 1024

#: Fewest numbers that say anything, and fewest that must differ.
_LEAST = 64

#: Bytes that an allocator overwrites in a block that was freed.
ALLOCATOR_BYTES = 32

#: Upper bytes of a pointer of a 64-bit process: bits 40 to 47 of the heap, of libraries and of mapped memory.
_POINTER_STARTS = (0x55, 0x56, 0x7E, 0x7F)

#: Where a standard deviation of latents lies, in VAE space and outside of it.
_LEAST_DEVIATION, _MOST_DEVIATION = 0.02, 60.0

_READINGS = ("float16", "bfloat16", "float32")

_FORMATS = {"float16": ("e", 2), "bfloat16": ("H", 2), "float32": ("f", 4)}


@dataclass(frozen=True, slots=True)
class Sample:
    """Numbers of a tensor, and what is known of them.

    Attributes:
        numbers: They themselves.
        deviation: Their root mean square; infinite if one is not finite.
        near_zero: The share of those that are not zero and less than a thousandth of it.
        around: The share of those below half of it: four of ten for normal numbers.
        distinct: How many differ.
    """

    numbers: tuple[float, ...]
    deviation: float
    near_zero: float
    around: float
    distinct: int

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Sample:
        """Return what is known of numbers."""
        finite = all(map(math.isfinite, numbers)) and max(map(abs, numbers), default=0) < 1e30
        deviation = math.sqrt(math.fsum(x * x for x in numbers) / len(numbers)) if finite and numbers else math.inf
        is_too_small = not deviation and any(numbers)  # denormal: the squares are zero
        if not math.isfinite(deviation) or is_too_small or not numbers:
            return cls(tuple(numbers), math.inf, 1.0, 1.0, 0)
        nonzero = [abs(x) for x in numbers if x]
        near_zero = sum(x < deviation / 1000 for x in nonzero) / max(1, len(nonzero))
        around = sum(abs(x) < deviation / 2 for x in numbers) / len(numbers)
        return cls(tuple(numbers), deviation, near_zero, around, len(set(numbers)))

    @property
    def is_plausible(self) -> bool:
        """Whether these may be latents: of a usual size, and spread as numbers that a network makes."""
        return (
            _LEAST_DEVIATION < self.deviation < _MOST_DEVIATION
            and self.near_zero < 0.05
            and 0.1 < self.around < 0.85
            and self.distinct >= min(_LEAST, len(self.numbers) // 2)
            and max(map(abs, self.numbers)) < 20 * self.deviation
        )

    @property
    def is_nonsense(self) -> bool:
        """Whether these cannot be latents: not finite, of all sizes at once, or of two values and their signs."""
        return (
            not math.isfinite(self.deviation)
            or self.near_zero > 0.1
            or (self.around < 0.02 and min(self.numbers) < 0 < max(self.numbers) and self.deviation > 1)
        )


def read_as(
    data: bytes | bytearray | memoryview, dtype: str, *, big_endian: bool = False, most: int = _SAMPLE_BYTES
) -> Sample:
    """Return a sample of raw bytes as numbers of a dtype."""
    code, size = _FORMATS[dtype]
    view = memoryview(data).cast("B")
    start = max(0, (view.nbytes - most) // 2) // 8 * 8
    piece = bytes(view[start : start + most])
    piece = piece[: len(piece) // size * size]
    order = ">" if big_endian else "<"
    numbers = struct.unpack(f"{order}{len(piece) // size}{code}", piece)
    if dtype == "bfloat16":
        numbers = struct.unpack(f"<{len(numbers)}f", struct.pack(f"<{len(numbers)}I", *(n << 16 for n in numbers)))
    return Sample.of(numbers)


def explain(data: bytes | bytearray | memoryview, dtype: str) -> Finding | None:
    """Return the reading in which nonsense is latents; None if the numbers make sense, or none does.

    Args:
        data: The elements, little-endian.
        dtype: Their dtype in the request: one of float16, bfloat16 and float32.
    """
    if dtype not in _FORMATS or memoryview(data).nbytes < _LEAST * 4:
        return None
    if not read_as(data, dtype, most=_FIRST_BYTES).is_nonsense or not read_as(data, dtype).is_nonsense:
        return None
    for other in _READINGS:
        if other != dtype and read_as(data, other).is_plausible:
            size = _FORMATS[other][1]
            is_same_size = size == _FORMATS[dtype][1]
            return Finding(
                "wrong-dtype",
                f"numbers that are nonsense in {dtype} and latents in {other}",
                f"dtype={other}" if is_same_size else f"dtype={other} with the shape that the tensor has",
            )
    for other in (dtype, *_READINGS):
        if read_as(data, other, big_endian=True).is_plausible:
            named = "" if other == dtype else f" in {other}"
            return Finding(
                "wrong-byte-order",
                f"numbers that are nonsense as little-endian and latents as big-endian{named}",
                "little-endian bytes, such as array.astype(array.dtype.newbyteorder('<')).tobytes()",
            )
    return None


def holds_pointers(data: bytes | bytearray | memoryview, dtype: str) -> bool:
    """Return whether the first 32 bytes hold addresses, which an allocator writes into freed memory.

    In float16 and bfloat16 one address may be two numbers and a zero by chance, so that two are asked for.
    """
    start = bytes(memoryview(data).cast("B")[:ALLOCATOR_BYTES])
    words = struct.unpack(f"<{len(start) // 8}Q", start[: len(start) // 8 * 8])
    pointers = [word >> 48 == 0 and (word >> 40) in _POINTER_STARTS and bool(word & 0xFFFFFFFF) for word in words]
    return pointers.count(True) >= (1 if dtype == "float32" else 2)
