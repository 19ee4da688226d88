"""What is loaded of a pipeline, and what is said when it cannot be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub import COMMIT, serving_hub
from safetensors.torch import load_file, save_file
from text_pipelines import CASES, Case, keep_text_alone

from hybridge.engine.options import EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.engine.text.tokenizers import load_tokenizer
from hybridge.errors import ModelUnavailable

CPU = EngineOptions(device="cpu")


def case_of(class_name: str) -> Case:
    return next(case for case in CASES if case.class_name == class_name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a pipeline without all that is not text; made once, not to be changed."""
    made: dict[str, Path] = {}

    def find(class_name: str) -> Path:
        if class_name not in made:
            made[class_name] = tmp_path_factory.mktemp(class_name)
            case_of(class_name).save(made[class_name])
        return made[class_name] / "text"

    return find


@pytest.fixture
def flux(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of Flux's text side."""
    return Path(shutil.copytree(saved("FluxPipeline"), tmp_path / "flux"))


def refusal(folder: Path | str, options: EngineOptions = CPU) -> ModelUnavailable:
    with pytest.raises(ModelUnavailable) as caught:
        TextEngine.load(folder, options, name="mine")
    return caught.value


def test_a_loaded_text_side_says_what_it_is(flux: Path) -> None:
    engine = TextEngine.load(flux, CPU)
    assert engine.side.name == "FLUX.1"
    assert (engine.dtype.value, engine.revision) == (torch.float32, None)
    files = [*flux.rglob("*.safetensors")]
    held = sum(tensor.nbytes for path in files for tensor in load_file(path).values())
    assert held == TextEngine.expected_bytes(flux, CPU)
    assert held <= engine.weights_bytes < held + 1024  # positions are in no file
    assert not any(model.training for model in engine.parts.encoders.values())
    assert engine.repository.identity == TextEngine.load(flux, CPU).repository.identity
    weights = flux / "text_encoder" / "model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    assert engine.repository.identity != TextEngine.load(flux, CPU).repository.identity


def test_what_no_embedding_depends_on_is_not_loaded(saved: Callable[[str], Path]) -> None:
    mistral = TextEngine.load(saved("Flux2Pipeline"), CPU).parts
    model = mistral.encoders["text_encoder"]
    assert (model.model.vision_tower, model.model.multi_modal_projector) == (None, None)
    assert isinstance(model.lm_head, torch.nn.Identity)
    assert len(model.model.language_model.layers) == mistral.kept_layers["text_encoder"] == 31
    klein = TextEngine.load(saved("Flux2KleinPipeline"), CPU).parts
    assert len(klein.encoders["text_encoder"].model.layers) == 28
    qwen = TextEngine.load(saved("QwenImagePipeline"), CPU)
    assert qwen.parts.encoders["text_encoder"].model.visual is None
    assert qwen.weights_bytes < TextEngine.expected_bytes(saved("QwenImagePipeline"), CPU)


def test_layers_that_were_not_loaded_are_refused(saved: Callable[[str], Path]) -> None:
    engine = TextEngine.load(saved("Flux2Pipeline"), CPU)
    engine.check({"prompt": "a", "text_encoder_out_layers": [1, 30]})
    with pytest.raises(Exception, match="from 0 to 30"):
        engine.check({"prompt": "a", "text_encoder_out_layers": [31]})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_transformers_keeps_in_float32_stays_so(dtype: Any, saved: Callable[[str], Path]) -> None:
    """Casting after loading would take bits from T5's ``wo``."""
    import transformers

    folder = saved("ChromaPipeline")
    engine = TextEngine.load(folder, EngineOptions(device="cpu", dtype=dtype))
    theirs = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=getattr(torch, dtype))
    found = {name: one.dtype for name, one in engine.parts.encoders["text_encoder"].named_parameters()}
    assert found == {name: one.dtype for name, one in theirs.named_parameters()}
    assert any(one == torch.float32 for one in found.values()) == (dtype == "float16")


def test_bfloat16_files_stay_in_it(flux: Path) -> None:
    for path in flux.rglob("*.safetensors"):
        save_file({name: one.bfloat16() for name, one in load_file(path).items()}, path, {"format": "pt"})
    engine = TextEngine.load(flux, CPU)
    assert engine.dtype.value == torch.bfloat16
    made = engine.encode({"prompt": "a cat", "max_sequence_length": 8})
    assert {one.dtype for one in made.tensors.values() if isinstance(one, torch.Tensor)} == {torch.bfloat16}


def test_an_fp16_variant_is_taken_where_there_is_nothing_else(flux: Path) -> None:
    for name in ("text_encoder", "text_encoder_2"):
        whole = flux / name / "model.safetensors"
        half = {key: one.half() for key, one in load_file(whole).items()}
        whole.unlink()
        save_file(half, flux / name / "model.fp16.safetensors", {"format": "pt"})
    assert TextEngine.load(flux, CPU).dtype.value == torch.float32


# ------------------------------------------------------------------------------------------------ refusals


def test_no_pipeline(tmp_path: Path) -> None:
    assert "no model_index.json for mine" in str(refusal(tmp_path))
    assert "no folder for mine" in str(refusal(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "index", [{"_class_name": "DDPMPipeline"}, {"_class_name": ["module", "Mine"]}, {}], ids=str
)
def test_a_pipeline_that_is_not_known(index: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert "the text encoders of mine are not known here" in str(refusal(tmp_path))


def change_index(folder: Path, **entries: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_pipeline_without_text_encoders(flux: Path) -> None:
    change_index(flux, text_encoder_2=[None, None])
    assert "mine has no text encoder: saw text_encoder_2 is missing" in str(refusal(flux))


@pytest.mark.parametrize("entry", [["mine", "Encoder"], ["diffusers", "AutoencoderKL"], "T5EncoderModel"], ids=str)
def test_code_of_a_repository_is_not_run(entry: Any, flux: Path) -> None:
    change_index(flux, text_encoder_2=entry)
    (flux / "mine.py").write_text("raise SystemExit")
    assert "nothing that transformers loads" in str(refusal(flux))


def test_a_class_that_transformers_does_not_have(flux: Path) -> None:
    change_index(flux, text_encoder_2=["transformers", "T6EncoderModel"])
    assert "transformers has no T6EncoderModel" in str(refusal(flux))


def test_weights_that_are_missing_or_pickled(flux: Path) -> None:
    weights = flux / "text_encoder_2" / "model.safetensors"
    torch.save(load_file(weights), flux / "text_encoder_2" / "pytorch_model.bin")
    weights.unlink()
    said = str(refusal(flux))
    assert "no safetensors weights for the text_encoder_2 of mine: saw pytorch_model.bin" in said


def test_weights_that_are_incomplete(flux: Path) -> None:
    weights = flux / "text_encoder_2" / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("encoder.block.0.layer.0.SelfAttention.q.weight")
    save_file(tensors, weights, {"format": "pt"})
    said = str(refusal(flux))
    assert "incomplete: saw no encoder.block.0.layer.0.SelfAttention.q.weight, and 0 more" in said


def test_weights_that_are_damaged(flux: Path) -> None:
    weights = flux / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "the weights of mine are damaged" in str(refusal(flux))


def test_a_tokenizer_without_a_vocabulary(flux: Path) -> None:
    (flux / "tokenizer_2" / "tokenizer.json").unlink()
    said = str(refusal(flux))
    assert "the tokenizer_2 of mine has no vocabulary" in said
    assert "tokenizer_config.json" in said
    shutil.rmtree(flux / "tokenizer_2")
    assert "no vocabulary: saw no files" in str(refusal(flux))


def test_a_tokenizer_of_another_model(flux: Path, saved: Callable[[str], Path]) -> None:
    """It has more tokens than the encoder, or so few that it reads every prompt alike."""
    shutil.rmtree(flux / "tokenizer_2")
    shutil.copytree(saved("QwenImagePipeline") / "tokenizer", flux / "tokenizer_2")
    change_index(flux, tokenizer_2=["transformers", "Qwen2Tokenizer"])
    said = str(refusal(flux))
    assert "the tokenizer_2 of mine does not belong to its text encoder" in said
    assert "expected about 101" in said


def test_a_library_that_changes_embeddings_is_named(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    own = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "ftfy" else own(name, *more)
    )
    said = str(refusal(saved("WanPipeline")))
    assert "Wan needs ftfy, without which other embeddings come out" in said
    assert "hybridge[text]" in said


LOAD_FROM_HUB = """
from hybridge.engine.options import EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.engine.text.tokenizers import load_tokenizer
engine = TextEngine.load("owner/cosmos", EngineOptions(device="cpu"))
made = engine.encode({"prompt": "a cat", "max_sequence_length": 16})
print(engine.revision, list(made.tensors["prompt_embeds"].shape))
"""


def test_of_the_hub_the_text_side_alone_is_downloaded(tmp_path: Path, saved: Callable[[str], Path]) -> None:
    """From a server that answers as the hub does, with a VAE, a transformer and pickled weights beside."""
    whole = Path(shutil.copytree(saved("Cosmos2_5_PredictBasePipeline").parent / "whole", tmp_path / "repository"))
    (whole / "text_encoder" / "pytorch_model.bin").write_bytes(b"pickled")
    with serving_hub({"owner/cosmos": whole}) as (address, fetched):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", LOAD_FROM_HUB]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == [COMMIT, "[1, 16, 96]\n"]
    assert {name.partition("/")[0] for name in fetched} == {"model_index.json", "text_encoder", "tokenizer", "vae"}
    assert [name for name in fetched if name.startswith("vae/")] == ["vae/config.json"]
    assert not any(name.endswith(".bin") for name in fetched)


def test_a_copy_of_the_text_side_is_enough(tmp_path: Path) -> None:
    case = case_of("StableDiffusionXLPipeline")
    case.make().save_pretrained(tmp_path / "whole")
    keep_text_alone(tmp_path / "whole", tmp_path / "text", case.side)
    assert {path.name for path in (tmp_path / "text").iterdir()} == {"model_index.json", *case.side.components}


def test_a_sentencepiece_model_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older repositories of T5 have no other file; without the library, transformers speaks of tiktoken."""
    import sentencepiece
    import transformers

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat in rain", "a lighthouse at night"] * 20),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=20,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    tokenizer = load_tokenizer("mine", "tokenizer", tmp_path, transformers.T5Tokenizer)
    assert tokenizer.decode(tokenizer("a cat").input_ids, skip_special_tokens=True) == "a cat"
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ModelUnavailable, match=r"needs sentencepiece\. Try: pip install sentencepiece"):
        load_tokenizer("mine", "tokenizer", tmp_path, transformers.T5Tokenizer)
