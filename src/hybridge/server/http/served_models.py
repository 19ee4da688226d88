"""The models of a server, by name: the parts of each, and its entry in ``/v1/models``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import AmbiguousModel, RequestError, UnknownModel
from ...models import CATALOGUE, TEXT_CATALOGUE, ModelParts, ModelSpec, TextSpec, base_of_pipeline
from ...models.comfyui_text import comfy_family
from ..scheduling.backend import ModelInfo


class ServedModels:
    """The served models, in the order in which they were named at startup.

    Args:
        infos: What the backend says about every part.
    """

    def __init__(self, infos: Sequence[ModelInfo]) -> None:
        vaes = {info.spec.name: info.spec for info in infos if isinstance(info.spec, ModelSpec)}
        texts = {info.spec.name: info.spec for info in infos if isinstance(info.spec, TextSpec)}
        names = dict.fromkeys(info.spec.name for info in infos)
        self._models = {name: ModelParts(name, vaes.get(name), texts.get(name)) for name in names}
        self.vaes: Mapping[str, ModelSpec] = vaes
        self.texts: Mapping[str, TextSpec] = texts

    @property
    def names(self) -> list[str]:
        """The names of all models."""
        return list(self._models)

    def vae(self, name: str) -> ModelSpec:
        """Return the VAE of a model.

        Raises:
            UnknownModel: when there is no such model.
            RequestError: when it has no VAE.
        """
        vae = self.find(name).vae
        if vae is None:
            raise RequestError(
                f"{name} has no VAE on this server", saw="its text encoders alone", hint=f"POST /v1/{name}/prompt"
            )
        return vae

    def text(self, name: str) -> TextSpec:
        """Return the text encoders of a model.

        Raises:
            UnknownModel: when there is no such model.
            RequestError: when it has no text encoders.
        """
        text = self.find(name).text
        if text is None:
            others = ", ".join(self.texts)
            raise RequestError(
                f"{name} has no text encoders on this server",
                saw="its VAE alone",
                expected=f"one of {others}" if others else None,
                hint=None if others else f"`hybridge serve {name}:text`" if name in TEXT_CATALOGUE else None,
            )
        return text

    def find(self, name: str) -> ModelParts:
        """Return a model.

        Raises:
            UnknownModel: when there is none of this name; names the nearest.
        """
        if name in self._models:
            return self._models[name]
        near = difflib.get_close_matches(name, self._models, n=1)
        known = name in CATALOGUE or name in TEXT_CATALOGUE
        raise UnknownModel(
            "no such model on this server",
            saw=repr(name[:80]),
            expected="one of " + ", ".join(self._models),
            hint=near[0] if near else f"`hybridge serve {name}`" if known else None,
        )

    def text_of(self, base: str, default: str | None) -> TextSpec:
        """Return the text encoders for a format of another server, whose requests name no model.

        Args:
            base: The beginning of the pipeline's class name, such as ``Flux``.
            default: The model to take where several fit.

        Raises:
            RequestError: when there are none.
            AmbiguousModel: when several fit.
        """
        fitting = {name: text for name, text in self.texts.items() if base_of_pipeline(text.class_name) == base}
        if not fitting:
            raise RequestError(
                f"no model here has the text encoders of {base}",
                saw=", ".join(f"{name} ({text.class_name})" for name, text in self.texts.items()) or "none",
                hint="/v1/{model}/prompt, for any other",
            )
        if len(fitting) > 1 and default not in fitting:
            raise AmbiguousModel(
                f"several models here have the text encoders of {base}",
                saw=", ".join(fitting),
                expected="one",
                hint="--default-model when starting the server",
            )
        return fitting[default] if default in fitting else next(iter(fitting.values()))

    def described(self, name: str, infos: Sequence[ModelInfo]) -> dict[str, Any]:
        """Return the entry of a model in ``/v1/models``."""
        own = [info for info in infos if info.spec.name == name]
        document: dict[str, Any] = {}
        for info in own:
            if isinstance(info.spec, ModelSpec):
                document = {**_described_vae(info, info.spec), **document}
        text = next((info for info in own if isinstance(info.spec, TextSpec)), None)
        if text is not None and isinstance(text.spec, TextSpec):
            document = document or _described_state(text)
            document |= {
                "tasks": [*document.get("tasks", ()), "prompt"],
                "prompt": f"/v1/{name}/prompt",
                "text": _described_text(text, text.spec),
            }
        return document


def _described_vae(info: ModelInfo, spec: ModelSpec) -> dict[str, Any]:
    return {
        **_described_state(info),
        "latent_channels": spec.latent_channels,
        "spatial_factor": spec.spatial_factor,
        "temporal_factor": spec.temporal_factor,
        "frames": str(spec.frames),
        "axes": spec.axes,
        "scaling": str(spec.normalisation),
        "scaling_factor": spec.normalisation.scaling_factor,
        "shift_factor": spec.normalisation.shift_factor,
        "latents_mean": spec.normalisation.mean,
        "latents_std": spec.normalisation.std,
        "parent": spec.parent,
        "threads": info.threads,
        "config": dict(info.config),
        "statistics": {name: list(numbers) for name, numbers in info.statistics.items()},
        "tasks": ["decode", "encode"] if spec.has_encoder else ["decode"],
        "decode": f"/v1/{spec.name}/decode",
        "encode": f"/v1/{spec.name}/encode" if spec.has_encoder else None,
    }


def _described_state(info: ModelInfo) -> dict[str, Any]:
    return {
        "name": info.spec.name,
        "title": info.spec.title,
        "class": info.spec.class_name,
        "device": info.device,
        "device_reason": info.device_reason,
        "dtype": info.dtype,
        "dtype_reason": info.dtype_reason,
        "weights_bytes": info.weights_bytes,
        "state": info.state,
        "failure": info.failure,
        **({"replicas": dict(info.replicas)} if info.replicas else {}),
    }


def _described_text(info: ModelInfo, spec: TextSpec) -> dict[str, Any]:
    side = spec.side
    return {
        **{name: value for name, value in _described_state(info).items() if name not in ("name", "title")},
        "options": [*dict.fromkeys([*(parameter.name for parameter in side.parameters), *side.negatives])],
        "conventions": ["diffusers", "comfyui"] if comfy_family(side) else ["diffusers"],
        "needs_picture": side.picture is not None,
        "loras": list(info.loras),
        "host_bytes": info.host_bytes,
        "quantisation": info.config.get("quantisation", spec.quantisation),
        "made_with": dict(info.config),
    }
