"""What is known of a VAE before its weights are loaded: facts, no behaviour of the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import ModelUnavailable, RequestError
from .config_check import shown, wrong_value

Kind = Literal["kl", "tiny"]

#: diffusers' class names, the only two that are loaded.
CLASS_NAMES: dict[str, Kind] = {"AutoencoderKL": "kl", "AutoencoderTiny": "tiny"}


#: Channels of a picture: red, green and blue.
_COLOURS = 3


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How pipelines bring VAE latents to unit scale.

    ``(z - shift_factor) * scaling_factor``, or with ``mean`` and ``std``, one number for each channel,
    ``(z - mean) * scaling_factor / std``, as diffusers' SDXL pipelines do for Playground v2.5.
    """

    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One row of the catalogue.

    Attributes:
        name: What it is called in URLs and on the command line.
        source: A repository of the Hugging Face hub, or a folder on disk.
        subfolder: Where in it the VAE lies.
        kind: ``kl`` for AutoencoderKL, ``tiny`` for AutoencoderTiny.
        latent_channels: C of latents (B, C, H / spatial_factor, W / spatial_factor).
        spatial_factor: Pixels per latent on each side.
        normalisation: What the model's own pipelines apply.  A tiny autoencoder eats and gives latents that are
            normalised already; for it, this is its parent's.
        half: The half precision that it survives on a GPU, or None where only float32 gives pictures.
        half_reason: Why.
        parent: For a tiny autoencoder, the model whose latents it reads.
        title: For people.
        architecture: What of its ``config.json`` shapes the module, so that it can be planned before it is fetched;
            None where that has to be read.
        has_encoder: False where the weights are a decoder alone, which cannot encode.
    """

    name: str
    source: str
    kind: Kind
    latent_channels: int
    normalisation: Normalisation
    half: Literal["float16", "bfloat16"] | None
    half_reason: str
    subfolder: str | None = None
    spatial_factor: int = 8
    parent: str | None = None
    title: str = ""
    architecture: Mapping[str, Any] | None = field(default=None, hash=False, repr=False)
    has_encoder: bool = True

    @property
    def class_name(self) -> str:
        """The diffusers class."""
        return next(name for name, kind in CLASS_NAMES.items() if kind == self.kind)

    def check_encodes(self) -> None:
        """Raises :class:`RequestError` for a decoder alone."""
        if not self.has_encoder:
            raise RequestError(
                f"{self.name} cannot encode",
                saw="the weights of a decoder alone",
                hint="its encoder's file beside the decoder's, or another model",
            )


def spec_from_config(
    name: str, source: str, subfolder: str | None, config: Mapping[str, Any], *, parent: ModelSpec | None = None
) -> ModelSpec:
    """The facts of a VAE that is not in the catalogue, from its ``config.json``.

    Args:
        name: What to call it.
        source: Repository or folder.
        subfolder: Where in it the VAE lies.
        config: The parsed ``config.json``.
        parent: For a tiny autoencoder, the model whose latents it reads, where that is known.

    Raises:
        ModelUnavailable: for a class that hybridge does not run, and for values that cannot be.
    """
    try:
        return _read_spec(name, source, subfolder, config, parent)
    except (TypeError, ValueError) as error:
        raise ModelUnavailable(f"the config.json of {name} cannot be right", saw=error, where=source) from None


def check_config(name: str, config: Mapping[str, Any], where: object) -> None:
    """Raises :class:`ModelUnavailable` for a ``config.json`` with a value that no VAE has."""
    wrong = wrong_value(config)
    if wrong is not None:
        saw, expected = wrong
        raise ModelUnavailable(
            f"the config.json of {name} cannot be right", saw=saw, expected=expected, where=where
        )


def _read_spec(
    name: str, source: str, subfolder: str | None, config: Mapping[str, Any], parent: ModelSpec | None
) -> ModelSpec:
    class_name = config.get("_class_name")
    kind = CLASS_NAMES.get(str(class_name))
    if kind is None:
        raise ModelUnavailable(
            f"{name} is not a VAE that hybridge runs",
            saw=f"_class_name {shown(class_name)}",
            expected=" or ".join(CLASS_NAMES),
            hint=f"{name}={source}:vae, if this is a whole pipeline",
            where=source,
        )
    check_config(name, config, source)
    pixels = [int(config.get(key) or _COLOURS) for key in ("in_channels", "out_channels")]
    if pixels != [_COLOURS, _COLOURS]:
        raise ModelUnavailable(
            f"{name} is not a VAE of pictures in colour",
            saw=f"{class_name} with in_channels {pixels[0]} and out_channels {pixels[1]}",
            expected=f"{_COLOURS} of both",
            where=source,
        )
    if kind == "tiny":
        return ModelSpec(
            name=name,
            source=source,
            subfolder=subfolder,
            kind=kind,
            latent_channels=config.get("latent_channels") or 4,
            spatial_factor=2 ** (len(config.get("decoder_block_out_channels") or (64,) * 4) - 1),
            normalisation=parent.normalisation if parent else Normalisation(),
            half="float16",
            half_reason="tiny autoencoders have no norms that overflow",
            parent=parent.name if parent else None,
        )
    # What is missing has AutoencoderKL's default: SD v1's config.json has no scaling factor.  Except force_upcast,
    # whose default is True in the class and means nothing there: only what a config says aloud counts.
    blocks = config.get("block_out_channels") or (64,)
    upcast = config.get("force_upcast") is True
    mean, std = (tuple(map(float, config.get(key) or ())) or None for key in ("latents_mean", "latents_std"))
    return ModelSpec(
        name=name,
        source=source,
        subfolder=subfolder,
        kind=kind,
        latent_channels=config.get("latent_channels") or 4,
        spatial_factor=2 ** (len(blocks) - 1),
        normalisation=Normalisation(
            float(config.get("scaling_factor") or 0.18215),
            float(config.get("shift_factor") or 0.0),
            *((mean, std) if mean and std else (None, None)),
        ),
        half=None if upcast else "bfloat16",
        half_reason="its config says force_upcast" if upcast else "bfloat16 cannot overflow, whatever the weights",
    )
