"""Facts about a VAE that are known before its weights are loaded; they do not depend on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import ModelUnavailable, RequestError
from .config_check import shown, wrong_value

Kind = Literal["kl", "tiny"]

#: The two diffusers classes that hybridge loads.
CLASS_NAMES: dict[str, Kind] = {"AutoencoderKL": "kl", "AutoencoderTiny": "tiny"}


#: Channels of a picture: red, green and blue.
_COLOURS = 3


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How pipelines scale VAE latents to about unit variance.

    ``(z - shift_factor) * scaling_factor``, or, with ``mean`` and ``std`` for each channel,
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
        name: Its name in URLs and on the command line.
        source: A repository of the Hugging Face hub, or a folder on disk.
        subfolder: The subfolder of the VAE in the source.
        kind: ``kl`` for AutoencoderKL, ``tiny`` for AutoencoderTiny.
        latent_channels: C of latents (B, C, H / spatial_factor, W / spatial_factor).
        spatial_factor: Pixels per latent on each side.
        normalisation: The normalisation of the model's own pipelines.  A tiny autoencoder takes and returns
            latents that are already normalised; for it, this is its parent's.
        half: The half precision that the weights support on a GPU, or None if only float32 gives correct pictures.
        half_reason: The reason for ``half``.
        parent: For a tiny autoencoder, the model whose latents it decodes.
        title: A title for users.
        architecture: The part of its ``config.json`` that defines the module, so that it can be planned before it
            is downloaded; None if ``config.json`` has to be read.
        has_encoder: False if the weights are only a decoder, which cannot encode.
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
        """Name of the diffusers class."""
        return next(name for name, kind in CLASS_NAMES.items() if kind == self.kind)

    def check_encodes(self) -> None:
        """Raise :class:`RequestError` if the model has no encoder."""
        if not self.has_encoder:
            raise RequestError(
                f"{self.name} cannot encode",
                saw="the weights of a decoder alone",
                hint="its encoder's file beside the decoder's, or another model",
            )


def spec_from_config(
    name: str, source: str, subfolder: str | None, config: Mapping[str, Any], *, parent: ModelSpec | None = None
) -> ModelSpec:
    """Return the facts of a VAE that is not in the catalogue, from its ``config.json``.

    Args:
        name: Name of the model.
        source: Repository or folder.
        subfolder: The subfolder of the VAE in the source.
        config: The parsed ``config.json``.
        parent: For a tiny autoencoder, the model whose latents it decodes, if known.

    Raises:
        ModelUnavailable: for a class that hybridge does not run, and for impossible values.
    """
    try:
        return _read_spec(name, source, subfolder, config, parent)
    except (TypeError, ValueError) as error:
        raise ModelUnavailable(f"the config.json of {name} cannot be right", saw=error, where=source) from None


def check_config(name: str, config: Mapping[str, Any], where: object) -> None:
    """Raise :class:`ModelUnavailable` for a ``config.json`` with an impossible value."""
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
    # Missing keys have AutoencoderKL's defaults: SD v1's config.json has no scaling factor.  The exception is
    # force_upcast, whose default in the class is True but has no meaning: only an explicit value counts.
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
