"""The VAEs of a server that can take the place of a pipeline's, as ``GET /v1/models`` describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadAnswer, Mismatch
from ..models import CLASS_NAMES, Normalisation

#: The classes that a remote VAE can stand in for.
REPLACEABLE = frozenset(
    {
        *CLASS_NAMES,
        "AsymmetricAutoencoderKL",
        "AutoencoderDC",
        "AutoencoderKLAllegro",
        "AutoencoderKLCogVideoX",
        "AutoencoderKLCosmos",
        "AutoencoderKLFlux2",
        "AutoencoderKLHunyuanImage",
        "AutoencoderKLHunyuanImageRefiner",
        "AutoencoderKLHunyuanVideo",
        "AutoencoderKLHunyuanVideo15",
        "AutoencoderKLLTX2Video",
        "AutoencoderKLLTXVideo",
        "AutoencoderKLMagvit",
        "AutoencoderKLMochi",
        "AutoencoderKLQwenImage",
        "AutoencoderKLQwenImage21",
        "AutoencoderKLTemporalDecoder",
        "AutoencoderKLWan",
        "Kandinsky6SRVAE",
    }
)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model from ``GET /v1/models``: the facts that decide whether it fits, its config, and its statistics."""

    name: str
    class_name: str
    latent_channels: int
    spatial_factor: int
    normalisation: Normalisation
    dtype: str
    config: Mapping[str, Any] = field(hash=False, repr=False)
    statistics: Mapping[str, Sequence[float]] = field(default_factory=dict, hash=False, repr=False)

    @property
    def kind(self) -> str:
        """See :func:`kind_of`."""
        return kind_of(self.class_name)


def kind_of(class_name: str) -> str:
    """Return ``kl`` or ``tiny`` for the two classes of pictures that stand in for each other, else the class."""
    return CLASS_NAMES.get(class_name, class_name)


def read_models(documents: Sequence[Any], server: str) -> list[ServedModel]:
    """Return the server's models whose class a pipeline's VAE can have.

    Raises:
        BadAnswer: when the server's description lacks a required fact.
    """
    return [
        _read_model(document, server)
        for document in documents
        if not isinstance(document, dict) or str(document.get("class", "AutoencoderKL")) in REPLACEABLE
    ]


def _read_model(document: Any, server: str) -> ServedModel:
    try:
        if not isinstance(document["config"], dict) or not document["config"]:
            raise KeyError("config")
        mean, std = (tuple(map(float, document[key])) if document[key] else None for key in _STATISTICS)
        return ServedModel(
            name=str(document["name"]),
            class_name=document["class"],
            latent_channels=int(document["latent_channels"]),
            spatial_factor=int(document["spatial_factor"]),
            normalisation=Normalisation(
                float(document["scaling_factor"]), float(document["shift_factor"] or 0), mean, std
            ),
            dtype=str(document["dtype"]),
            config=document["config"],
            statistics={
                str(name): tuple(map(float, numbers))
                for name, numbers in (document.get("statistics") or {}).items()
            },
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        name = document.get("name") if isinstance(document, dict) else document
        raise BadAnswer(
            f"{server} does not say of its models what a pipeline has to know",
            saw=f"{str(name)[:60]!r} with {type(error).__name__}: {str(error)[:60]}",
            expected="every key of this release's /v1/models",
            hint="the same release of hybridge on both machines",
        ) from None


_STATISTICS = ("latents_mean", "latents_std")


def irreplaceable(who: str, saw: str) -> Mismatch:
    """Return the error for a pipeline whose VAE no remote VAE can stand in for.

    Args:
        who: Name of the pipeline.
        saw: What the error says of its VAE.
    """
    return Mismatch(
        f"the VAE of this {who} is not of a kind that hybridge serves",
        saw=saw,
        expected="one of " + ", ".join(sorted(REPLACEABLE)),
    )
