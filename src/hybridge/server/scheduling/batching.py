"""Which jobs are alike, so that they may share a run, and how they are put together."""

from __future__ import annotations

from collections.abc import Sequence

from ...protocol import DecodeRequest, WireTensor
from .job import Job


def batch_key(job: Job) -> object | None:
    """Jobs whose likenesses are equal give the same results together as alone; None for a job that must be alone.

    Alone are those whose meaning depends on all of their numbers (``value_range=auto`` of floats), those that draw
    at random, those that hold more than one picture or none of the usual four axes, and videos.
    """
    request, tensor = job.request, job.tensor
    if job.spec.frames.has_axis or len(tensor.shape) != 4 or tensor.shape[0] != 1:
        return None
    what = (job.spec.name, job.task, tensor.dtype, tensor.shape, tensor.channels_last, request.scaling)
    if isinstance(request, DecodeRequest):
        kind = "bytes" if request.output in ("picture", "video", "pixels") else request.output
        return (*what, kind, request.height, request.width)
    if request.sample or (request.value_range == "auto" and tensor.dtype != "uint8"):
        return None
    return (*what, request.value_range, request.moments)


def concatenate(tensors: Sequence[WireTensor]) -> WireTensor:
    """Tensors of one dtype and shape (N, …), one after another along their first axis."""
    first = tensors[0]
    if len(tensors) == 1:
        return first
    shape = (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])
    return WireTensor(first.dtype, shape, b"".join(tensor.data for tensor in tensors), first.channels_last)
