"""LoRAs of text encoders: loaded by diffusers' own functions through peft, and removed without a trace.

peft computes a LoRA beside a layer and leaves the layer's weights alone, so removing it restores every bit.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import ModelUnavailable, RequestError
from ...models import TextSide
from ...models.text_parts import CLIP_TOKENS
from ..weights import checked_shapes
from .footprint import Reserve
from .loading import TextParts

_ADAPTER = "hybridge"

#: How the names of tensors for a denoiser begin, in the files of diffusers, kohya's scripts and ComfyUI.
_OF_DENOISERS = ("unet.", "lora_unet_", "transformer.", "lora_transformer_", "diffusion_model.", "base_model.")

#: peft makes weights in float32, before it reads the file's into them.
_MADE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA in a file.

    Attributes:
        name: Its name, for errors.
        path: The safetensors file.
        identity: Tells the file from others, and from itself before it was changed.
        numbers: Of its weights for text encoders, at most.
        file_bytes: Bytes of the file.
        scale: The factor of its part.
    """

    name: str
    path: Path
    identity: str
    numbers: int
    file_bytes: int
    scale: float = 1.0


def numbers_of(name: str, path: Path) -> int:
    """Return how many weights for text encoders a LoRA's file has, at most, from its header.

    Raises:
        ModelUnavailable: when it is damaged, or cannot be read.
    """
    shapes = checked_shapes(f"the LoRA {name}", path, set())
    return sum(math.prod(shape) for key, shape in shapes.items() if not key.startswith(_OF_DENOISERS))


def is_available() -> bool:
    """Return whether peft is installed."""
    return importlib.util.find_spec("peft") is not None


class Adapters:
    """The LoRA that the encoders of one engine have; used by one thread at a time.

    Args:
        parts: The pipeline and its encoders.
        side: What is known of the encoders.
        device: Where they are.

    Attributes:
        weights_bytes: Of the LoRA that the encoders have now.
    """

    def __init__(self, parts: TextParts, side: TextSide, device: torch.device) -> None:
        self._parts, self._side, self._device = parts, side, device
        self._used: Lora | None = None
        self.weights_bytes = 0

    def use(self, lora: Lora | None, reserve: Reserve | None = None) -> None:
        """Let the encoders have this LoRA and no other, or none.

        Args:
            lora: The LoRA.
            reserve: Called with the bytes that loading it takes at most; what it raises ends the call.

        Raises:
            RequestError: when the pipeline takes none, or the LoRA is none for its text encoders.
            ModelUnavailable: when peft is missing, or the file cannot be read.
        """
        if lora == self._used:
            return
        self._remove()
        if lora is None:
            return
        if reserve is not None:
            # The file is read in the host's memory; peft makes weights, and the file's replace them.
            read_bytes = lora.file_bytes if self._device.type == "cpu" else 0
            reserve(read_bytes + 2 * _MADE_BYTES * lora.numbers)
        try:
            self._add(lora)
        except BaseException:
            self._remove()
            raise
        self._used = lora
        models = self._parts.encoders.values()
        self.weights_bytes = sum(one.nbytes for model in models for _, one in _added_to(model))

    def _add(self, lora: Lora) -> None:
        pipeline_class = type(self._parts.pipeline)
        if not is_available():
            raise ModelUnavailable("LoRAs need peft", hint="pip install 'hybridge[lora]'")
        takes = may_have(pipeline_class, self._side)
        if not takes:
            raise RequestError(f"diffusers loads no LoRA into the text encoders of {pipeline_class.__name__}")
        state, alphas = self._read(lora)
        taking = {name: model for name, model in self._parts.encoders.items() if name in takes}
        own = {name: model for name, model in taking.items() if _is_for(name, state)}
        if not own:
            raise RequestError(
                f"the LoRA {lora.name} holds nothing for the text encoders of {pipeline_class.__name__}",
                expected="keys of " + " or ".join(taking),
                hint="a request without it: the LoRA changes the denoiser alone",
            )
        for name, model in own.items():
            if "bitsandbytes" in self._parts.quantised.get(name, ""):
                raise RequestError(
                    "diffusers loads no LoRA into encoders that bitsandbytes has quantised",
                    saw=f"{name}: {self._parts.quantised[name]}",
                    hint="a server with --text-quantisation of another library",
                )
            with _as_diffusers_knows_it(model), self._misfits_named(lora):
                pipeline_class.load_lora_into_text_encoder(
                    state,
                    network_alphas=alphas,
                    text_encoder=model,
                    prefix=name,
                    lora_scale=lora.scale,
                    adapter_name=_ADAPTER,
                )
                _check_whole(name, model, state)
            model.eval().requires_grad_(False)

    @contextmanager
    def _misfits_named(self, lora: Lora) -> Iterator[None]:
        """A file that can be read, but not put between the layers of these encoders."""
        try:
            yield
        except Exception as error:  # diffusers, peft and transformers raise many kinds
            raise RequestError(
                f"the LoRA {lora.name} does not fit the text encoders of {type(self._parts.pipeline).__name__}",
                saw=_said(error),
                expected="a LoRA that was trained for this pipeline",
            ) from None

    def _read(self, lora: Lora) -> tuple[Mapping[str, Any], Mapping[str, float] | None]:
        """The file's tensors in diffusers' names, and its alphas."""
        try:
            made = type(self._parts.pipeline).lora_state_dict(
                str(lora.path.parent),
                weight_name=lora.path.name,
                use_safetensors=True,
                local_files_only=True,
                return_alphas=True,
            )
        except Exception as error:  # safetensors and diffusers raise many kinds on files that they do not know
            raise ModelUnavailable(
                f"the LoRA {lora.name} cannot be loaded",
                saw=_said(error),
                hint="a LoRA that was trained for this pipeline, as a safetensors file",
            ) from None
        state, alphas = made if isinstance(made, tuple) else (made, None)
        # Copies, because these are mapped from the file, which may be written anew.
        return {key: one.clone() for key, one in state.items() if key.startswith("text_encoder")}, alphas

    def _remove(self) -> None:
        from diffusers.utils import recurse_remove_peft_layers

        self._used, self.weights_bytes = None, 0
        for model in self._parts.encoders.values():
            if getattr(model, "_hf_peft_config_loaded", False):
                recurse_remove_peft_layers(model)
                del model.peft_config
                model._hf_peft_config_loaded = False


def may_have(pipeline_class: Any, side: TextSide) -> tuple[str, ...]:
    """Return the text encoders into which diffusers loads LoRAs: CLIPs, whose layers alone it knows."""
    if not hasattr(pipeline_class, "load_lora_into_text_encoder"):
        return ()
    clips = [encoder.name for encoder in side.encoders if encoder.tokens == CLIP_TOKENS]
    return tuple(name for name in clips if name in pipeline_class._lora_loadable_modules)


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


def _added_to(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that peft has put beside a model's own."""
    return ((name, one) for name, one in model.named_parameters() if f".{_ADAPTER}." in f"{name}.")


def _check_whole(encoder: str, model: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse a file with tensors for layers that a model lacks, or with half of a layer's: they would be left out.

    Raises:
        ValueError: when there are any.
    """
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft

    own = {key.removeprefix(f"{encoder}."): one for key, one in state.items() if key.startswith(f"{encoder}.")}
    given = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
    sent = {key.removeprefix("text_model.") for key in given if not key.endswith(".alpha")}
    used = {name.replace(f".{_ADAPTER}", "").removeprefix("text_model.") for name, _ in _added_to(model)}
    if sent != used:
        absent = sorted(sent - used)
        raise ValueError(f"{absent[0]}, which {encoder} lacks" if absent else f"no {min(used - sent)}")


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
