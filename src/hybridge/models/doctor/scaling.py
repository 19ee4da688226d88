"""Whether the factors of a request are the model's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ..catalogue import CATALOGUE
from ..spec import ModelSpec
from ..vae_class import Normalisation
from .causes import Finding

#: Factors travel as text with a handful of digits.
_TOLERANCE = 1e-3


def check_factors(spec: ModelSpec, scaling_factor: float | None, shift_factor: float | None) -> Iterator[Finding]:
    """Yield a finding if the factors of a request are those of another family.

    Other factors that are not the model's own are left to the numbers: who multiplied by them, divides by them.

    Args:
        spec: The model.
        scaling_factor: As in the request; None if it has none.
        shift_factor: As in the request.
    """
    own = spec.normalisation
    if spec.kind == "tiny" and spec.parent is None:
        return  # whatever the factor is, it says that the latents are a pipeline's
    if scaling_factor is None or own.mean or own.buffers or is_scaled_by(own, scaling_factor, shift_factor):
        return
    if is_scaled_by(replace(own, shift_factor=0.0), scaling_factor, 0.0):
        yield Finding(
            "wrong-shift-factor",
            f"scaling_factor is {spec.name}'s, and shift_factor is {shift_factor or 0:g} and not"
            f" {own.shift_factor:g}",
            f"shift_factor={own.shift_factor:g}" if own.shift_factor else "no shift_factor",
        )
        return
    others = families_with(scaling_factor, shift_factor)
    given = f"scaling_factor {scaling_factor:g}" + (f" and shift_factor {shift_factor:g}" if shift_factor else "")
    if others:
        shift = f" and shift_factor {own.shift_factor:g}" if own.shift_factor else ""
        yield Finding(
            "scaling-factor-of-another-model",
            f"{given} belongs to {', '.join(others)}, and {spec.name} has {own.scaling_factor:g}{shift}",
            f"scaling_factor={own.scaling_factor:g}, or the model {others[0]}",
        )


def is_scaled_by(by: Normalisation, scaling_factor: float, shift_factor: float | None) -> bool:
    """Return whether these are the factors of a normalisation."""
    return math.isclose(scaling_factor, by.scaling_factor, rel_tol=_TOLERANCE) and math.isclose(
        shift_factor or 0.0, by.shift_factor, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE * abs(by.shift_factor)
    )


def families_with(scaling_factor: float, shift_factor: float | None, class_name: str | None = None) -> list[str]:
    """Return the names of the catalogue's full autoencoders with these factors, which are not 1 and 0.

    Args:
        scaling_factor: The factor.
        shift_factor: The shift; None for 0.
        class_name: Only models of this diffusers class; None for all.
    """
    if math.isclose(scaling_factor, 1.0, rel_tol=_TOLERANCE):
        return []
    full = [
        row
        for row in CATALOGUE.values()
        if row.kind != "tiny"
        and class_name in (None, row.class_name)
        and not (row.normalisation.mean or row.normalisation.buffers)
    ]
    return [row.name for row in full if is_scaled_by(row.normalisation, scaling_factor, shift_factor)]
