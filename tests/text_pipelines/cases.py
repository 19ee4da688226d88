"""Small pipelines whole: text encoders, denoiser, VAE, and what they are called with for a picture of two steps."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch

from hybridge.models import TextSide, text_side_for

from . import denoisers, encoders, tokenizers

Components = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One pipeline.

    Attributes:
        class_name: Its class.
        text: Makes tokenizers and encoders.
        rest: Makes the other components, and what else the constructor takes.
        call: Arguments of the call beside the prompts.
        title: Tells cases of one class apart.
        length: ``max_sequence_length``, where the pipeline has it: short, so that tests are fast.
        options: Further options about text, to be tried beside their defaults.
        unequal: Names of tensors that a batch may change in the last bit of float32.
    """

    class_name: str
    text: Components
    rest: Components
    call: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    length: int | None = 16
    options: Mapping[str, Any] = field(default_factory=dict)
    unequal: tuple[str, ...] = ()

    @property
    def side(self) -> TextSide:
        found = text_side_for(self.class_name)
        assert found is not None
        return found

    @property
    def pipeline_class(self) -> Any:
        return getattr(diffusers, self.class_name)

    def __str__(self) -> str:
        return f"{self.class_name} {self.title}".strip()

    def make(self) -> Any:
        """The whole pipeline."""
        takes = inspect.signature(self.pipeline_class.__init__).parameters
        given = {name: value for name, value in {**self.text(), **self.rest()}.items() if name in takes}
        return self.pipeline_class(**given)

    def save(self, folder: Path) -> None:
        """The whole pipeline into ``folder/whole``, and into ``folder/text`` without all that is not text."""
        self.make().save_pretrained(folder / "whole")
        keep_text_alone(folder / "whole", folder / "text", self.side)

    def encode_options(self) -> dict[str, Any]:
        """Options of ``encode_prompt`` that keep a test fast."""
        return {} if self.length is None else {"max_sequence_length": self.length}

    def picture(self, pipe: Any, **text: Any) -> torch.Tensor:
        """What a call gives, as numbers."""
        pipe.set_progress_bar_config(disable=True)
        takes = inspect.signature(type(pipe).__call__).parameters
        call = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "pt", **self.call}
        call = {name: value() if inspect.isfunction(value) else value for name, value in call.items()}
        call = {name: value for name, value in call.items() if name in takes}
        torch.manual_seed(0)
        made = pipe(**text, **call, generator=torch.Generator().manual_seed(0))
        images = made.images if hasattr(made, "images") else made.frames
        return images if isinstance(images, torch.Tensor) else torch.as_tensor(images)


def keep_text_alone(whole: Path, folder: Path, side: TextSide) -> None:
    """Copies a pipeline's text side, and the ``config.json`` of stand-ins."""
    folder.mkdir()
    shutil.copy(whole / "model_index.json", folder)
    for name in side.components:
        if (whole / name).is_dir():
            shutil.copytree(whole / name, folder / name)
    for name in side.stand_ins:
        if (whole / name / "config.json").is_file():
            (folder / name).mkdir()
            shutil.copy(whole / name / "config.json", folder / name)


def index_of(folder: Path) -> dict[str, Any]:
    """Its ``model_index.json``."""
    return json.loads((folder / "model_index.json").read_text())


def _clip_t5() -> dict[str, Any]:
    clip, t5 = tokenizers.clip(), tokenizers.t5()
    return {
        "text_encoder": encoders.clip(clip),
        "tokenizer": clip,
        "text_encoder_2": encoders.t5(t5),
        "tokenizer_2": t5,
    }


def _clip() -> dict[str, Any]:
    clip = tokenizers.clip()
    return {"text_encoder": encoders.clip(clip), "tokenizer": clip}


def _two_clips(*, projected: bool = False) -> dict[str, Any]:
    second = tokenizers.clip("!")
    first = tokenizers.clip()
    return {
        "text_encoder": encoders.clip(first, projected=projected),
        "tokenizer": first,
        "text_encoder_2": encoders.clip(second, projected=True, seed=1),
        "tokenizer_2": second,
    }


def _refiner() -> dict[str, Any]:
    return {**_two_clips(), "text_encoder": None, "tokenizer": None}


def _sd3() -> dict[str, Any]:
    t5 = tokenizers.t5()
    return {
        **_two_clips(projected=True),
        "text_encoder_3": encoders.t5(t5, width=2 * encoders.WIDTH),
        "tokenizer_3": t5,
    }


def _sd3_without_t5() -> dict[str, Any]:
    return {**_two_clips(projected=True), "text_encoder_3": None, "tokenizer_3": None}


def _t5() -> dict[str, Any]:
    tokenizer = tokenizers.t5()
    return {"text_encoder": encoders.t5(tokenizer), "tokenizer": tokenizer}


def _umt5() -> dict[str, Any]:
    tokenizer = tokenizers.t5()
    return {"text_encoder": encoders.umt5(tokenizer), "tokenizer": tokenizer}


def _mistral() -> dict[str, Any]:
    tokenizer = tokenizers.mistral()
    return {"text_encoder": encoders.mistral3(tokenizer), "tokenizer": tokenizer}


def _klein() -> dict[str, Any]:
    tokenizer = tokenizers.qwen()
    return {
        "text_encoder": encoders.qwen3(tokenizer, "Qwen3ForCausalLM", layers=30, width=16),
        "tokenizer": tokenizer,
    }


def _qwen_image() -> dict[str, Any]:
    tokenizer = tokenizers.qwen()
    return {"text_encoder": encoders.qwen2_vl(tokenizer), "tokenizer": tokenizer}


def _z_image() -> dict[str, Any]:
    tokenizer = tokenizers.qwen()
    return {"text_encoder": encoders.qwen3(tokenizer, "Qwen3Model", width=16), "tokenizer": tokenizer}


_VIDEO = {"num_frames": 9, "height": 32, "width": 32}
_FILL = {"image": lambda: denoisers.picture(), "mask_image": lambda: denoisers.picture(1)}

CASES = (
    Case("StableDiffusionPipeline", _clip, denoisers.stable_diffusion, length=None, options={"clip_skip": 1}),
    Case(
        "StableDiffusionXLPipeline",
        _two_clips,
        denoisers.sdxl,
        length=None,
        options={"clip_skip": 1, "prompt_2": "rain"},
    ),
    Case(
        "StableDiffusionXLImg2ImgPipeline",
        _refiner,
        denoisers.sdxl_refiner,
        {"image": lambda: denoisers.picture(), "strength": 1.0},
        title="refiner",
        length=None,
    ),
    Case("StableDiffusion3Pipeline", _sd3, denoisers.sd3, options={"clip_skip": 1, "prompt_3": "rain"}),
    Case("StableDiffusion3Pipeline", _sd3_without_t5, denoisers.sd3, title="without T5"),
    Case("FluxPipeline", _clip_t5, denoisers.flux, {"true_cfg_scale": 2.0}, options={"prompt_2": "rain"}),
    Case("FluxFillPipeline", _clip_t5, lambda: denoisers.flux(in_channels=384, out_channels=64), _FILL),
    Case(
        "FluxKontextPipeline",
        _clip_t5,
        denoisers.flux,
        {"image": lambda: denoisers.picture(), "max_area": 64 * 64, "_auto_resize": False, "true_cfg_scale": 2.0},
    ),
    Case("ChromaPipeline", _t5, denoisers.chroma),
    Case("Flux2Pipeline", _mistral, lambda: denoisers.flux2(3 * 16), length=64),
    Case("Flux2KleinPipeline", _klein, lambda: denoisers.flux2(3 * 16), length=32),
    Case("QwenImagePipeline", _qwen_image, denoisers.qwen_image, {"true_cfg_scale": 2.0}),
    Case("ZImagePipeline", _z_image, denoisers.z_image, length=32),
    Case("WanPipeline", _umt5, denoisers.wan, _VIDEO),
    Case("LTXPipeline", _t5, denoisers.ltx, _VIDEO),
)
