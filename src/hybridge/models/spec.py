"""Facts about a VAE that are known before its weights are loaded; they do not depend on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import ModelUnavailable, RequestError
from .config_check import shown, wrong_value
from .frames import STILL, FrameRule
from .vae_class import PACK, Axes, Half, Kind, Normalisation, VaeClass
from .vae_classes import VAE_CLASSES

#: The classes of pictures that clients can put a remote VAE in the place of.
CLASS_NAMES: dict[str, Kind] = {"AutoencoderKL": "kl", "AutoencoderTiny": "tiny"}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One row of the catalogue.

    Attributes:
        name: Its name in URLs and on the command line.
        source: A repository of the Hugging Face hub, or a folder on disk.
        subfolder: The subfolder of the VAE in the source.
        class_name: Name of the diffusers class.
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
        shape: Where ``architecture`` is None, the part of ``config.json`` that decides the shapes of weights, which
            is enough to plan with; None if that has to be read as well.
        has_encoder: False if the weights are only a decoder, which cannot encode.
        frames: How many frames latent frames are; pictures by default.
        axes: The order of axes in pipelines' latents.
        pack: The side of the square of latents that pipelines pack into one token; 0 if they never pack.
    """

    name: str
    source: str
    latent_channels: int
    normalisation: Normalisation
    half: Half
    half_reason: str
    class_name: str = "AutoencoderKL"
    subfolder: str | None = None
    spatial_factor: int = 8
    parent: str | None = None
    title: str = ""
    architecture: Mapping[str, Any] | None = field(default=None, hash=False, repr=False)
    shape: Mapping[str, Any] | None = field(default=None, hash=False, repr=False)
    has_encoder: bool = True
    frames: FrameRule = STILL
    axes: Axes = "BCHW"
    pack: int = PACK

    @property
    def vae_class(self) -> VaeClass:
        """What all weights of its diffusers class have in common."""
        return VAE_CLASSES[self.class_name]

    @property
    def kind(self) -> Kind:
        """``tiny`` if the module takes and returns latents that are already normalised, else ``kl``."""
        return self.vae_class.kind

    @property
    def is_video(self) -> bool:
        """Whether it decodes to videos and not to pictures."""
        return self.frames.is_video

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame; 1 for pictures."""
        return self.frames.factor

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


def from_class(
    name: str,
    title: str,
    source: str,
    class_name: str,
    config: Mapping[str, Any] | None = None,
    *,
    subfolder: str | None = "vae",
    is_whole: bool = True,
) -> ModelSpec:
    """Return a row of the catalogue from its class and what its ``config.json`` changes of the class's defaults.

    Args:
        name: The row's name.
        title: A title for users.
        source: Repository.
        class_name: Name of the diffusers class.
        config: What its ``config.json`` changes.
        subfolder: The subfolder of the VAE in the source.
        is_whole: Whether ``config`` is all that it changes, so that the module is known without ``config.json``;
            otherwise it is all that changes the shapes of weights.
    """
    given = dict(config or {})
    spec = spec_from_config(name, source, subfolder, {"_class_name": class_name, **given})
    spec = replace(spec, title=title)
    return replace(spec, architecture=given) if is_whole else replace(spec, architecture=None, shape=given)


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
    known = VAE_CLASSES.get(str(class_name))
    if known is None:
        raise ModelUnavailable(
            f"{name} is not a VAE that hybridge runs",
            saw=f"_class_name {shown(class_name)}",
            expected=f"AutoencoderKL, AutoencoderTiny or another of {len(VAE_CLASSES)} classes, see docs/models.md",
            hint=f"{name}={source}:vae, if this is a whole pipeline",
            where=source,
        )
    check_config(name, config, source)
    expected = known.colours(config)
    pixels = tuple(int(config.get(key) or own) for key, own in zip(_PIXEL_KEYS, expected, strict=True))
    if pixels != expected:
        raise ModelUnavailable(
            f"{name} is not a VAE of pictures in colour",
            saw=f"{class_name} with in_channels {pixels[0]} and out_channels {pixels[1]}",
            expected=f"{expected[0]} of both" if expected[0] == expected[1] else f"{expected[0]} and {expected[1]}",
            where=source,
        )
    normalisation, (half, half_reason) = known.normalisation(config), known.half
    if known.kind == "tiny":
        normalisation = parent.normalisation if parent else Normalisation()
    elif config.get("force_upcast") is True and class_name in CLASS_NAMES:
        # The default in the class is True but has no meaning: only an explicit value counts.
        half, half_reason = None, "its config says force_upcast"
    frames, axes, pack = known.frames(config), known.axes, known.pack
    if known.kind == "tiny" and parent is not None:  # pipelines have latents as the parent takes them
        axes, pack = parent.axes, parent.pack
        if frames.is_video:
            frames = replace(frames, kind=parent.frames.kind)
    key, channels = known.channels
    return ModelSpec(
        name=name,
        source=source,
        subfolder=subfolder,
        class_name=known.name,
        latent_channels=int(config.get(key) or channels) * known.folded,
        spatial_factor=known.spatial(config),
        normalisation=normalisation,
        half=half,
        half_reason=half_reason,
        parent=parent.name if parent and known.kind == "tiny" else None,
        frames=frames,
        axes=axes,
        pack=pack,
    )


_PIXEL_KEYS = ("in_channels", "out_channels")
