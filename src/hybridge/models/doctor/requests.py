"""The checks of a whole request, for the server, for `hybridge decode` on this machine, and for the doctor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from ..layout import latents_layout
from ..spec import ModelSpec
from ..vae_class import Normalisation
from .causes import Finding
from .numbers import examine_bits, examine_latents
from .scaling import check_factors
from .shapes import cropped_sides


class Elements(Protocol):
    """A tensor as it is on the wire: :class:`hybridge.protocol.WireTensor`."""

    @property
    def dtype(self) -> str:
        """Name of the dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The axes."""

    @property
    def data(self) -> bytes | bytearray | memoryview:
        """The elements in C order, little-endian."""

    def to_numpy(self) -> Any:
        """The elements as an array."""


def examine_parameters(
    shape: Sequence[int],
    spec: ModelSpec,
    *,
    scaling_factor: float | None,
    shift_factor: float | None,
    height: int | None,
    width: int | None,
) -> Iterator[Finding]:
    """Yield warnings about a decode request, from its parameters alone: this takes no time.

    Raises:
        RequestError: when the shape is not that of the model's latents.
    """
    yield from check_factors(spec, scaling_factor, shift_factor)
    layout = latents_layout(shape, spec, height, width)
    yield from cropped_sides(layout.picture, height, width, is_packed=layout.is_packed)


def examine_elements(
    latents: Elements,
    spec: ModelSpec,
    sent: Normalisation | None,
    height: int | None = None,
    width: int | None = None,
) -> Iterator[Finding]:
    """Yield findings about the numbers of a decode request, in at most a few milliseconds; it needs NumPy.

    Args:
        latents: What was sent.
        spec: The model.
        sent: The normalisation of the latents; None for VAE space.
        height: As in the request.
        width: As in the request.

    Raises:
        RequestError: when the shape is not that of the model's latents.
    """
    layout = latents_layout(latents.shape, spec, height, width)
    found = [*examine_bits(latents.data, latents.dtype)]
    yield from found
    if not found:
        yield from examine_latents(latents.to_numpy(), spec, sent, layout)


def refuse_errors(found: Sequence[Finding], spec: ModelSpec) -> None:
    """Raise the first finding that makes the result worthless, as a RequestError."""
    for finding in found:
        if finding.is_error:
            raise finding.as_error(f"these are no latents of {spec.name}")
