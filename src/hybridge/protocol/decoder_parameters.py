"""The parameters of a decode request that some decoders alone have."""

from __future__ import annotations

from typing import Any

from ..errors import RequestError
from .query import Parameters

DECODER_PARAMETERS = ("decode_timestep", "decode_noise_scale", "seed", "decode_chunk_size")


def read_decoder_parameters(parameters: Parameters) -> dict[str, Any]:
    """Return them by name, as :class:`DecodeRequest` has them; None for those that are missing.

    Raises:
        RequestError: for a value out of its range.
    """
    return {
        "decode_timestep": _part(parameters, "decode_timestep"),
        "decode_noise_scale": _part(parameters, "decode_noise_scale"),
        "seed": parameters.integer("seed", least=0),
        "decode_chunk_size": parameters.integer("decode_chunk_size", least=1),
    }


def _part(parameters: Parameters, name: str) -> float | None:
    part = parameters.number(name)
    if part is not None and not 0 <= part <= 1:
        raise RequestError(f"{name} is out of its range", saw=part, expected="0 to 1")
    return part
