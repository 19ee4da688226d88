"""A pipeline to try: how it is built around a VAE, and what it is called with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """One pipeline.

    Attributes:
        family: What it is listed under.
        name: Its class, and what sets it apart from others of that class.
        components: Makes everything for the constructor, the VAE with it; two calls give equal weights.
        make: Makes the pipeline of them.
        inputs: Makes the arguments of a call; two calls give equal ones.
        vae_name: The attribute that holds the VAE: ``vae``, or ``movq``, ``vqgan`` and the like in older families.
    """

    family: str
    name: str
    components: Callable[[], dict[str, Any]]
    make: Callable[..., Any]
    inputs: Callable[[Any], dict[str, Any]]
    vae_name: str = "vae"


VAE_NAMES = ("vae", "movq", "vqgan", "vqvae")


def chosen(function: Callable[..., Any], pool: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``pool`` the function takes; functions in it are called."""
    parameters = inspect.signature(function).parameters
    return {
        name: value() if inspect.isfunction(value) else value for name, value in pool.items() if name in parameters
    }


def vae_name_of(names: Mapping[str, Any]) -> str:
    """The one of :data:`VAE_NAMES` that is there."""
    return next((name for name in VAE_NAMES if name in names), "")
