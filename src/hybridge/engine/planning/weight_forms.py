"""Compute the size of the transformed weights that an executor keeps in addition to the module's weights.

A transform's weights are larger than the layer's own: by 24/9 for tiles of 4×2.  They are made when an op first
runs and are kept, so a caller that budgets memory must count them from the beginning.
"""

from __future__ import annotations

from ..program.layers import Norm, Weights
from ..program.ops import Attend, Convolve
from ..program.program import Program
from .conv_algorithms import DeviceProfile, algorithm_of

#: Norms are computed in float32 at least.
_NORM_BYTES = 4


def prepared_bytes(program: Program, arithmetic: DeviceProfile) -> int:
    """Return the bytes that are kept for a program in strips, without the module's own weights.

    Exact except for biases: every layer is assumed to have one.
    """
    nbytes = 0
    for op in program.ops:
        if isinstance(op, Attend):
            nbytes += _of_attention(op, arithmetic)
        elif isinstance(op, Convolve):
            nbytes += _of_convolution(op, arithmetic)
    return nbytes


def _of_convolution(op: Convolve, arithmetic: DeviceProfile) -> int:
    way, width = algorithm_of(op, arithmetic), arithmetic.computed_bytes
    biases = {"four-phases": 4 * op.weights.out_channels}.get(way.kind, op.weights.out_channels)
    nbytes = 0
    are_own = way.kind == "direct" and op.weights.taps is None and not op.weights.beside
    if arithmetic.is_widened or not are_own:  # else torch's convolution uses the module's own weights
        nbytes += way.weight_bytes(op, width)
    if arithmetic.is_widened or way.kind == "four-phases" or op.shortcut is not None:
        nbytes += biases * width
    if op.shortcut is not None:
        itemsize = arithmetic.stored_bytes if arithmetic.rounds(op.shortcut) else width
        nbytes += op.shortcut.in_channels * op.shortcut.out_channels * itemsize
    frames = op.in_time.kernel if op.in_time else 1
    return nbytes + _of_norm(op.norm, op.weights.in_channels // frames, arithmetic)


def _of_attention(op: Attend, arithmetic: DeviceProfile) -> int:
    nbytes = _of_norm(op.norm, op.query.in_channels, arithmetic)
    if arithmetic.is_widened:
        nbytes += sum(_linear(layer) for layer in (op.query, op.key, op.value, op.out)) * arithmetic.computed_bytes
    return nbytes


def _of_norm(norm: Norm | None, channels: int, arithmetic: DeviceProfile) -> int:
    if norm is None or norm.kind in ("mean square", "attention"):
        return 0
    if norm.kind == "rms":  # its scale
        return channels * max(arithmetic.computed_bytes, _NORM_BYTES)
    return 2 * channels * _NORM_BYTES if arithmetic.stored_bytes < _NORM_BYTES else 0


def _linear(layer: Weights) -> int:
    return (layer.in_channels + 1) * layer.out_channels
