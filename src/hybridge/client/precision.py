"""Round latents to a narrower dtype at the caller's request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import RequestError
from ..protocol import WireTensor

if TYPE_CHECKING:
    import numpy

#: The wire's half-precision dtypes.
Precision = Literal["float16", "bfloat16"]


def lowered(tensor: WireTensor, precision: Precision) -> WireTensor:
    """Round the elements to nearest, ties to even, as torch and NumPy do.

    Raises:
        RequestError: for any other precision, for a tensor that is not float, and for elements out of range.
    """
    import numpy as np

    if precision not in get_args(Precision):
        raise RequestError(
            "unknown precision to quantise to", saw=repr(precision), expected=" or ".join(get_args(Precision))
        )
    if tensor.dtype == precision:
        return tensor
    if tensor.dtype == "uint8":
        raise RequestError("bytes cannot be quantised", saw=tensor.dtype, expected="floats")
    floats = tensor.to_numpy().astype("<f4", copy=False)
    if precision == "bfloat16":
        return WireTensor(precision, tensor.shape, _to_bfloat16(floats).tobytes(), tensor.channels_last)
    with np.errstate(over="ignore"):
        halves = floats.astype("<f2")
    if not np.isfinite(halves).all():
        raise RequestError(
            "these latents do not fit into float16",
            saw=f"up to {float(np.abs(floats).max()):g}",
            expected="at most 65504",
            hint='quantize="bfloat16"',
        )
    return WireTensor(precision, tensor.shape, halves.tobytes(), tensor.channels_last)


def _to_bfloat16(floats: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    """Round to the upper halves of float32.  NaN is kept: rounding its payload could give infinity."""
    import numpy as np

    bits = np.ascontiguousarray(floats).view("<u4")
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(floats), np.uint32(0x7FC0), rounded).astype("<u2")
