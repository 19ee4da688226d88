"""Small pipelines whole: text encoders, denoiser, VAE, and what they are called with for a picture of two steps."""

from __future__ import annotations

import functools
import inspect
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch

from hybridge.models import TextSide, text_side_for

from . import denoisers, encoders, tokenizers
from . import video_denoisers as video

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
        batch: Prompts of a picture; one where the pipeline's own batches fail.
        settings: Attributes of the pipeline that keep its pictures small.
        passed: Components that are not saved.
    """

    class_name: str
    text: Components
    rest: Components
    call: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    length: int | None = 16
    options: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 2
    settings: Mapping[str, Any] = field(default_factory=dict)
    passed: Mapping[str, Any] = field(default_factory=dict)

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
        with _quiet():
            given = {name: value for name, value in {**self.text(), **self.rest()}.items() if name in takes}
        with _quiet():
            return self.pipeline_class(**given)

    def load(self, folder: Path, **components: Any) -> Any:
        """The pipeline from ``folder/whole``, with other components or without some."""
        absent = {name: None for name, part in self.text().items() if part is None}
        with _quiet():
            return self.pipeline_class.from_pretrained(folder / "whole", **{**absent, **self.passed, **components})

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
        for name, value in self.settings.items():
            *above, last = name.split(".")
            setattr(functools.reduce(getattr, above, pipe), last, value)
        takes = inspect.signature(type(pipe).__call__).parameters
        call = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "pt", **self.call}
        call = {name: value() if inspect.isfunction(value) else value for name, value in call.items()}
        call = {name: value for name, value in call.items() if name in takes}
        torch.manual_seed(0)
        with _quiet():
            made = pipe(**text, **call, generator=torch.Generator().manual_seed(0))
        images = next(getattr(made, name) for name in ("images", "image", "frames") if hasattr(made, name))
        return images if isinstance(images, torch.Tensor) else torch.as_tensor(images)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings: diffusers and transformers deprecate what they use themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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


def _plain(tokenizer: Callable[[], Any], encoder: Callable[[Any], Any]) -> Components:
    """One tokenizer and one encoder."""

    def make() -> dict[str, Any]:
        made = tokenizer()
        return {"text_encoder": encoder(made), "tokenizer": made}

    return make


def _with_second(first: Components, tokenizer: Callable[[], Any], encoder: Callable[[Any], Any]) -> Components:
    """And another of each."""

    def make() -> dict[str, Any]:
        second = tokenizer()
        return {**first(), "text_encoder_2": encoder(second), "tokenizer_2": second}

    return make


def _hidream() -> dict[str, Any]:
    t5, llama = tokenizers.t5(), tokenizers.llama()
    first, second = tokenizers.clip(tokens=248), tokenizers.clip(tokens=248)
    return {
        "text_encoder": encoders.clip(first, projected=True, positions=248),
        "tokenizer": first,
        "text_encoder_2": encoders.clip(second, projected=True, positions=248, seed=1),
        "tokenizer_2": second,
        "text_encoder_3": encoders.t5(t5),
        "tokenizer_3": t5,
        "text_encoder_4": encoders.llama(llama, "LlamaForCausalLM"),
        "tokenizer_4": llama,
    }


_UMT5 = _plain(tokenizers.t5, encoders.umt5)
_MISTRAL = _plain(tokenizers.mistral, encoders.mistral3)
_KLEIN = _plain(tokenizers.qwen, lambda made: encoders.qwen3(made, "Qwen3ForCausalLM", layers=30, width=16))
_Z_IMAGE = _plain(tokenizers.qwen, lambda made: encoders.qwen3(made, "Qwen3Model", width=16))
_OVIS = _plain(tokenizers.qwen, lambda made: encoders.qwen3(made, "Qwen3Model"))
_QWEN2_VL = _plain(tokenizers.qwen, lambda made: encoders.qwen2_vl(made, version="2"))
_GEMMA2 = _plain(tokenizers.gemma, encoders.gemma2)
_GEMMA3 = _plain(tokenizers.gemma, encoders.gemma3)
_T5_ONLY = _plain(tokenizers.t5, encoders.t5)
_QWEN_VL = _plain(tokenizers.qwen, encoders.qwen2_vl)
_HUNYUAN = _with_second(_plain(tokenizers.llama, encoders.llama), tokenizers.clip, encoders.clip)
_QWEN_CLIP = _with_second(_QWEN_VL, tokenizers.clip, encoders.clip)
_QWEN_BYT5 = _with_second(_QWEN_VL, tokenizers.byt5, encoders.t5)
_QWEN_TEXT_BYT5 = _with_second(_plain(tokenizers.qwen, encoders.qwen2_vl_text), tokenizers.byt5, encoders.t5)
_BERT_T5 = _with_second(_plain(tokenizers.bert, encoders.bert), tokenizers.t5, encoders.t5)

_VIDEO = {"num_frames": 9, "height": 32, "width": 32}
_FILL = {"image": lambda: denoisers.picture(), "mask_image": lambda: denoisers.picture(1)}

_SAFE = {"safety_checker": video.NoSafetyChecker()}

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
    Case("ChromaPipeline", _T5_ONLY, denoisers.chroma),
    Case("Flux2Pipeline", _MISTRAL, lambda: denoisers.flux2(3 * 16), length=64),
    Case("Flux2KleinPipeline", _KLEIN, lambda: denoisers.flux2(3 * 16), length=32),
    Case("QwenImagePipeline", _QWEN_VL, denoisers.qwen_image, {"true_cfg_scale": 2.0}),
    Case("ZImagePipeline", _Z_IMAGE, denoisers.z_image, length=32),
    Case("WanPipeline", _UMT5, denoisers.wan, _VIDEO),
    Case("LTXPipeline", _T5_ONLY, denoisers.ltx, _VIDEO),
    Case("Lumina2Pipeline", _GEMMA2, video.lumina2, options={"system_prompt": "You paint."}),
    Case(
        "HiDreamImagePipeline",
        _hidream,
        video.hidream,
        options={"prompt_4": "rain"},
        settings={"default_sample_size": 8},
    ),
    Case(
        "SanaPipeline",
        _GEMMA2,
        video.sana,
        {"use_resolution_binning": False},
        options={"complex_human_instruction": ["Improve:"], "clean_caption": True},
    ),
    Case(
        "SanaSprintPipeline",
        _GEMMA2,
        lambda: video.sana(guidance_embeds=True),
        {"use_resolution_binning": False},
        options={"complex_human_instruction": None},
    ),
    Case("PixArtAlphaPipeline", _T5_ONLY, video.pixart, {"use_resolution_binning": False}),
    Case(
        "PixArtSigmaPipeline",
        _T5_ONLY,
        video.pixart,
        {"use_resolution_binning": False},
        options={"clean_caption": False},
    ),
    Case("AuraFlowPipeline", _UMT5, video.auraflow),
    Case("HunyuanDiTPipeline", _BERT_T5, video.hunyuan_dit, {"use_resolution_binning": False}, length=None),
    Case("HunyuanVideoPipeline", _HUNYUAN, video.hunyuan_video, {**_VIDEO, "true_cfg_scale": 2.0}),
    Case("HunyuanVideo15Pipeline", _QWEN_TEXT_BYT5, video.hunyuan_video_15, _VIDEO, length=None, batch=1),
    Case("HunyuanImagePipeline", _QWEN_BYT5, video.hunyuan_image, {"height": 32, "width": 32}, length=None),
    Case("SkyReelsV2Pipeline", _UMT5, video.skyreels, _VIDEO),
    Case("LTX2Pipeline", _GEMMA3, video.ltx2, {**_VIDEO, "num_frames": 5}),
    Case("CogVideoXPipeline", _T5_ONLY, video.cogvideox, _VIDEO),
    Case("CogView4Pipeline", _plain(tokenizers.glm, encoders.glm), video.cogview4),
    Case("MochiPipeline", _T5_ONLY, video.mochi, {**_VIDEO, "num_frames": 7}),
    Case("AllegroPipeline", _T5_ONLY, video.allegro, {**_VIDEO, "num_frames": 8, "output_type": "latent"}),
    Case(
        "EasyAnimatePipeline",
        _QWEN2_VL,
        video.easyanimate,
        {**_VIDEO, "num_frames": 5},
        length=None,
    ),
    Case("Kandinsky5T2IPipeline", _QWEN_CLIP, video.kandinsky5_pictures, settings={"resolutions": [(64, 64)]}),
    Case("Kandinsky5T2VPipeline", _QWEN_CLIP, video.kandinsky5, {**_VIDEO, "num_frames": 5}),
    Case("CosmosTextToWorldPipeline", _T5_ONLY, video.cosmos, _VIDEO, passed=_SAFE),
    Case("Cosmos2TextToImagePipeline", _T5_ONLY, video.cosmos2, {"height": 32, "width": 32}, passed=_SAFE),
    Case("Cosmos2_5_PredictBasePipeline", _QWEN_VL, video.cosmos25, {**_VIDEO, "num_frames": 5}, passed=_SAFE),
    Case("BriaPipeline", _T5_ONLY, video.bria),
    Case("OvisImagePipeline", _OVIS, video.ovis),
    Case(
        "LongCatImagePipeline",
        _QWEN_VL,
        video.longcat,
        {"enable_prompt_rewrite": False},
        length=None,
        passed={"text_processor": None},
    ),
)
