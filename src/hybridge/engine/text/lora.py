"""LoRAs of text encoders: loaded by diffusers' own functions through peft, and removed without a trace.

peft computes a LoRA beside a layer and leaves the layer's weights alone, so removing it restores every bit.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ModelUnavailable, RequestError
from .loading import TextParts

_ADAPTER = "hybridge"


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA in a file.

    Attributes:
        name: Its name, for errors.
        path: The safetensors file.
        identity: Tells the file from others, and from itself before it was changed.
        scale: The factor of its part.
    """

    name: str
    path: Path
    identity: str
    scale: float = 1.0


def is_available() -> bool:
    """Return whether peft is installed."""
    return importlib.util.find_spec("peft") is not None


class Adapters:
    """The LoRA that the encoders of one engine have; used by one thread at a time.

    Args:
        parts: The pipeline and its encoders.
    """

    def __init__(self, parts: TextParts) -> None:
        self._parts = parts
        self._used: Lora | None = None

    def use(self, lora: Lora | None) -> None:
        """Let the encoders have this LoRA and no other, or none.

        Raises:
            RequestError: when the pipeline takes none, or the file holds nothing for its text encoders.
            ModelUnavailable: when peft is missing, or the file cannot be loaded.
        """
        if lora == self._used:
            return
        self._remove()
        if lora is None:
            return
        try:
            self._add(lora)
        except BaseException:
            self._remove()
            raise
        self._used = lora

    def _add(self, lora: Lora) -> None:
        pipeline_class = type(self._parts.pipeline)
        if not is_available():
            raise ModelUnavailable("LoRAs need peft", hint="pip install 'hybridge[lora]'")
        if not hasattr(pipeline_class, "load_lora_into_text_encoder"):
            raise RequestError(f"diffusers loads no LoRA into the text encoders of {pipeline_class.__name__}")
        state, alphas = self._read(lora)
        own = {name: model for name, model in self._parts.encoders.items() if _is_for(name, state)}
        if not own:
            raise RequestError(
                f"the LoRA {lora.name} holds nothing for the text encoders of {pipeline_class.__name__}",
                expected="keys of " + " or ".join(self._parts.encoders),
                hint="a request without it: the LoRA changes the denoiser alone",
            )
        for name, model in own.items():
            with _as_diffusers_knows_it(model), _failures_named(lora):
                pipeline_class.load_lora_into_text_encoder(
                    state,
                    network_alphas=alphas,
                    text_encoder=model,
                    prefix=name,
                    lora_scale=lora.scale,
                    adapter_name=_ADAPTER,
                )
            model.eval().requires_grad_(False)

    def _read(self, lora: Lora) -> tuple[Mapping[str, Any], Mapping[str, float] | None]:
        """The file's tensors in diffusers' names, and its alphas."""
        with _failures_named(lora):
            made = type(self._parts.pipeline).lora_state_dict(
                str(lora.path.parent),
                weight_name=lora.path.name,
                use_safetensors=True,
                local_files_only=True,
                return_alphas=True,
            )
        if not isinstance(made, tuple):
            return made, None
        return made[0], made[1]

    def _remove(self) -> None:
        from diffusers.utils import recurse_remove_peft_layers

        self._used = None
        for model in self._parts.encoders.values():
            if getattr(model, "_hf_peft_config_loaded", False):
                recurse_remove_peft_layers(model)
                del model.peft_config
                model._hf_peft_config_loaded = False


def _is_for(encoder: str, state: Mapping[str, Any]) -> bool:
    return any(key.startswith(f"{encoder}.") for key in state)


@contextmanager
def _as_diffusers_knows_it(model: Any) -> Iterator[None]:
    """Without CLIP's name of before (see ``loading``), by which diffusers tells how its layers are called."""
    before = model.__dict__.pop("text_model", None)
    try:
        yield
    finally:
        if before is not None:
            model.__dict__["text_model"] = before


@contextmanager
def _failures_named(lora: Lora) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # safetensors, diffusers and peft raise many kinds on damaged or foreign files
        said = str(error).strip().splitlines()
        raise ModelUnavailable(
            f"the LoRA {lora.name} cannot be loaded",
            saw=f"{type(error).__name__}: {said[0][:200] if said else ''}",
            hint="a LoRA that was trained for this pipeline, as a safetensors file",
        ) from None
