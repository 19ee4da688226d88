"""What the front and a replica send each other, and how the bytes of tensors travel.

Ray pickles these messages between processes of one cluster, whose members trust each other; nothing that a client
sends is unpickled.  Bytes of tensors and responses are arrays there, because Ray passes arrays through shared
memory, while it copies ``bytes``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import HybridgeError
from ..protocol import HttpResponse, WireTensor
from ..protocol.receipt import Receipt
from ..server.scheduling.backend import BackendLoad, ModelInfo
from ..server.scheduling.job import Job, Progress, Result

if TYPE_CHECKING:
    import numpy


@dataclass(frozen=True, slots=True)
class Order:
    """A job for a replica.

    Attributes:
        job: The job, without its film.
        replica: Name of the replica that the front has chosen.
        has_film: Whether the replica writes a film of the job, and sends its bytes as :class:`Piece`.
        tells_progress: Whether the replica reports progress.
    """

    job: Job[Any]
    replica: str
    has_film: bool = False
    tells_progress: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a film, which follow those sent before."""

    data: bytes


#: What a replica yields for an order; a result or an error is the last.
Reply = Progress | Piece | Result | HybridgeError


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What a replica says about itself.

    Attributes:
        name: Its name in the cluster.
        node: The machine that it runs on.
        infos: Its models.
        load: Its load.
        failed: The models that it could not load.
        shares: How many jobs for each model may share a run there.
        health: None while it takes jobs, else the reason why not.
    """

    name: str
    node: str
    infos: tuple[ModelInfo, ...]
    load: BackendLoad
    failed: frozenset[str]
    shares: Mapping[str, int]
    health: str | None = None


@dataclass(frozen=True, slots=True)
class KnownReceipt:
    """A receipt that is complete, in place of what would make it."""

    receipt: Receipt

    def __call__(self, wait: bool) -> Receipt:
        return self.receipt


def _array(data: bytes | bytearray | memoryview) -> numpy.ndarray[Any, Any]:
    import numpy as np

    return np.frombuffer(data, np.uint8)


def tensor_parts(tensor: WireTensor) -> tuple[str, tuple[int, ...], numpy.ndarray[Any, Any], bool]:
    """Return the parts of a tensor; the array shares its bytes."""
    return tensor.dtype, tensor.shape, _array(tensor.data), tensor.channels_last


def tensor_of(parts: tuple[str, tuple[int, ...], numpy.ndarray[Any, Any], bool]) -> WireTensor:
    """Return the tensor of :func:`tensor_parts`; it shares the array's bytes, which nobody may change."""
    dtype, shape, array, channels_last = parts
    return WireTensor(dtype, shape, memoryview(array.data), channels_last)


def response_parts(response: HttpResponse) -> tuple[int, dict[str, str], numpy.ndarray[Any, Any]]:
    """Return the parts of a response; the array shares its bytes."""
    return response.status, dict(response.headers), _array(response.body)


def response_of(parts: tuple[int, dict[str, str], numpy.ndarray[Any, Any]]) -> HttpResponse:
    """Return the response of :func:`response_parts`."""
    status, headers, array = parts
    return HttpResponse(status, headers, array.tobytes())


#: How each class travels: what makes its parts, and what makes it of its parts.
SERIALIZERS: Mapping[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    WireTensor: (tensor_parts, tensor_of),
    HttpResponse: (response_parts, response_of),
}
