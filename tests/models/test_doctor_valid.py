"""The doctor stays silent on valid requests, for every row of the catalogue."""

from __future__ import annotations

import numpy as np
import pytest
from latent_samples import packed, pipeline_latents, with_channels, with_frames

from hybridge.models import CATALOGUE, ModelSpec, latent_space
from hybridge.models.doctor.requests import examine_elements, examine_parameters
from hybridge.protocol import WireTensor
from hybridge.protocol.torch import cast_floats


def found(spec: ModelSpec, tensor: WireTensor, *, scaled: bool, sides: tuple[int, int] | None = None) -> list[str]:
    """The codes of what the doctor finds in a request with the model's own factors."""
    own = spec.normalisation
    height, width = sides or (None, None)
    says = examine_parameters(
        tensor.shape,
        spec,
        scaling_factor=own.scaling_factor if scaled and not own.mean else None,
        shift_factor=own.shift_factor if scaled and not own.mean else None,
        height=height,
        width=width,
    )
    numbers = examine_elements(tensor, spec, own if scaled else None, height, width)
    return [finding.code for finding in (*says, *numbers)]


def framed(latents: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """With the frames that the model has."""
    return with_frames(latents, 3 if spec.is_video else 1) if spec.frames.has_axis else latents


def requests(spec: ModelSpec) -> list[tuple[str, np.ndarray, bool, tuple[int, int] | None]]:
    """(name, array, whether it is scaled, height and width)"""
    made: list[tuple[str, np.ndarray, bool, tuple[int, int] | None]] = []
    for name, latents in pipeline_latents().items():
        picture = with_channels(latents, spec.latent_channels)
        own = framed(picture, spec)
        in_vae_space = latent_space.denormalise(own, spec.normalisation)
        made.append((name, latent_space.to_axes(own, spec), True, None))
        made.append((f"{name} in VAE space", latent_space.to_axes(in_vae_space, spec), False, None))
        if spec.pack:
            tall = picture[..., :16]
            pixels = (24 * spec.spatial_factor, 16 * spec.spatial_factor)
            made.append((f"{name} packed", packed(tall, spec.pack), True, pixels))
    some = latent_space.to_axes(
        framed(with_channels(pipeline_latents()["photograph"], spec.latent_channels), spec), spec
    )
    made += [
        ("four latents", some[..., :2, :2], True, None),
        ("a few", some[..., :4, :6], False, None),
        ("without a batch axis", some[0], True, None),
        ("zeros", np.zeros_like(some), True, None),
        ("zeros in VAE space", np.zeros_like(some), False, None),
        (
            "half done",
            (some * 0.3 + 9 * np.random.default_rng(3).normal(size=some.shape)).astype(np.float32),
            True,
            None,
        ),
    ]
    return made


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_valid_requests_are_silent(name: str, dtype: str) -> None:
    spec = CATALOGUE[name]
    for what, array, scaled, sides in requests(spec):
        tensor = cast_floats(WireTensor.from_numpy(array), dtype)
        assert found(spec, tensor, scaled=scaled, sides=sides) == [], what


def test_these_are_more_than_three_hundred() -> None:
    assert sum(len(requests(spec)) for spec in CATALOGUE.values()) > 300
