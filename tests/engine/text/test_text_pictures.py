"""Text encoders that look at a picture beside the prompt."""

from __future__ import annotations

import importlib.util
import inspect
import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from PIL import Image
from text_pipelines import Case, encoders, tokenizers, video_denoisers
from text_pipelines.cases import CASES

from hybridge.engine.options import EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.errors import ModelUnavailable, RequestError

CPU = EngineOptions(device="cpu")


def _text() -> dict[str, object]:
    llama, clip = tokenizers.llama(), tokenizers.clip()
    return {
        "text_encoder": encoders.llava(llama),
        "tokenizer": llama,
        "text_encoder_2": encoders.clip(clip),
        "tokenizer_2": clip,
        "image_processor": transformers.CLIPImageProcessorPil(size=336, crop_size=336),
    }


def _rest() -> dict[str, object]:
    return video_denoisers.hunyuan_video(in_channels=8, image_condition_type="token_replace")


CASE = Case("HunyuanVideoImageToVideoPipeline", _text, _rest)


def picture() -> Image.Image:
    return Image.linear_gradient("L").resize((40, 24)).convert("RGB")


def test_hunyuan_video_reads_a_picture(tmp_path: Path) -> None:
    CASE.save(tmp_path)
    whole = CASE.load(tmp_path)
    engine = TextEngine.load(tmp_path / "text", CPU)
    template = inspect.signature(diffusers.HunyuanVideoImageToVideoPipeline.__call__).parameters["prompt_template"]
    given = {"prompt_template": template.default, "max_sequence_length": 16}
    with torch.no_grad():
        expected = whole.encode_prompt(picture(), "a cat", image_embed_interleave=4, **given)
        negative = whole.encode_prompt(Image.new("RGB", (64, 64), 0), "blurry", **given)
    found = engine.encode(
        {"prompt": "a cat", "negative_prompt": "blurry", "max_sequence_length": 16}, images=[picture()]
    ).tensors
    names = ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")
    assert set(found) == {*names, *(f"negative_{name}" for name in names)}
    for index, name in enumerate(names):
        assert torch.equal(found[name], expected[index]), name
        assert torch.equal(found[f"negative_{name}"], negative[index]), name
    with pytest.raises(RequestError, match="needs a picture beside the prompt"):
        engine.check({"prompt": "a cat"})
    with pytest.raises(RequestError, match="more than one picture"):
        engine.encode({"prompt": "a cat"}, images=[picture(), picture()])


def test_a_processor_that_needs_torchvision_says_so(tmp_path: Path) -> None:
    """Qwen-Image-Edit's has one for videos, of which there is no version without torchvision."""
    case = next(case for case in CASES if case.class_name == "QwenImagePipeline")
    case.save(tmp_path)
    folder = tmp_path / "text"
    shutil.copytree(folder / "tokenizer", folder / "processor")
    transformers.Qwen2VLImageProcessorPil().save_pretrained(folder / "processor")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "QwenImageEditPipeline", "processor": ["transformers", "Qwen2VLProcessor"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    if importlib.util.find_spec("torchvision"):
        pytest.skip("there is torchvision")
    with pytest.raises(
        ModelUnavailable, match=r"^the processor of mine needs torchvision\. Try: pip install torchvision"
    ):
        TextEngine.load(folder, CPU, name="mine")
