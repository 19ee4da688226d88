"""Text encoders in 8 and 4 bits: fewer bytes, embeddings that are close, and refusals before anything is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors import safe_open
from text_servers import case_of, saved, serving

from hybridge.engine import EngineOptions
from hybridge.engine.text import TextEngine, quantisation
from hybridge.errors import EngineFailure, ModelUnavailable
from hybridge.models import QUANTISATIONS, TextSpec

PROMPT = {"prompt": "a lighthouse in a storm", "max_sequence_length": 16}

quantisers = [
    pytest.mark.quantisers,
    # The libraries' own: their wheels bring extensions for other machines, and build on what torch is retiring.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

#: The largest relative error of the embeddings, and the largest part of the bytes of bfloat16.
BOUNDS = {
    "bitsandbytes-int8": (0.05, 0.75),
    "bitsandbytes-nf4": (0.4, 0.6),
    "torchao-int8": (0.05, 0.75),
    "torchao-fp8": (0.15, 0.75),
    "quanto-int8": (0.05, 0.75),
    "quanto-int4": (0.4, 0.6),
    "quanto-fp8": (0.15, 0.75),
}


@pytest.fixture(scope="module")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> TextSpec:
    """A T5 of a width that every library can group."""
    folder = tmp_path_factory.mktemp("chroma")
    spec = saved(case_of("ChromaPipeline"), folder)
    import transformers

    config = transformers.T5Config.from_pretrained(Path(spec.source) / "text_encoder")
    config.update({"d_model": 256, "d_kv": 64, "d_ff": 256})
    torch.manual_seed(0)
    transformers.T5EncoderModel(config).to(torch.bfloat16).save_pretrained(Path(spec.source) / "text_encoder")
    return spec


def loaded(spec: TextSpec, kind: str | None = None, **options: Any) -> TextEngine:
    options = {"device": "cpu", **options}
    return TextEngine.load(spec.source, EngineOptions(**options), name="tiny", quantisation=kind)


def embeds(engine: TextEngine) -> torch.Tensor:
    made = engine.encode(PROMPT).tensors["prompt_embeds"]
    assert isinstance(made, torch.Tensor)
    return made.float()


def test_bounds_are_of_every_kind() -> None:
    assert BOUNDS.keys() == QUANTISATIONS.keys()


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=quantisers) for kind in QUANTISATIONS])
def test_embeddings_are_close_in_fewer_bytes(chroma: TextSpec, kind: str) -> None:
    whole, engine = loaded(chroma), loaded(chroma, kind)
    expected, found = embeds(whole), embeds(engine)
    most_error, most_part = BOUNDS[kind]
    assert 1e-4 < (found - expected).norm() / expected.norm() < most_error
    assert engine.weights_bytes < most_part * whole.weights_bytes
    promised = TextEngine.expected_bytes(chroma.source, EngineOptions(device="cpu"), kind)
    assert engine.weights_bytes <= promised < whole.weights_bytes
    assert engine.quantisation == f"text_encoder: {kind}"
    assert torch.equal(embeds(engine), found)


@pytest.mark.parametrize("kind", [pytest.param("bitsandbytes-int8", marks=quantisers)])
def test_a_server_says_so_and_keeps_answers_apart(chroma: TextSpec, kind: str) -> None:
    texts = [chroma, TextSpec("small", chroma.source, chroma.class_name, quantisation=kind)]
    with serving(texts) as server:
        assert httpx.get(f"{server}/v1/models/small").json()["text"]["quantisation"] == kind  # cold
        answers = [httpx.post(f"{server}/v1/{name}/prompt", json=PROMPT) for name in ("tiny", "small", "small")]
        said = [httpx.get(f"{server}/v1/models/{name}").json()["text"] for name in ("tiny", "small")]
    assert [answer.headers["hybridge-cache"] for answer in answers] == ["miss", "miss", "hit"]
    assert answers[0].content != answers[1].content
    assert [one["quantisation"] for one in said] == [None, f"text_encoder: {kind}"]
    assert said[1]["made_with"]["quantisation"] == f"text_encoder: {kind}"
    assert "bitsandbytes" in said[1]["made_with"]


@pytest.mark.parametrize("kind", [pytest.param("bitsandbytes-nf4", marks=quantisers)])
def test_small_encoders_stay_as_they_are(tmp_path: Path, kind: str) -> None:
    case = case_of("FluxPipeline")
    spec = saved(case, tmp_path)
    config = json.loads((Path(spec.source) / "text_encoder_2" / "config.json").read_text())
    import transformers

    large = transformers.T5Config(**{**config, "d_ff": 2048, "num_layers": 12})
    transformers.T5EncoderModel(large).save_pretrained(Path(spec.source) / "text_encoder_2")
    engine = loaded(spec, kind)
    assert engine.quantisation == f"text_encoder_2: {kind}"
    assert all(one.dtype == torch.float32 for one in engine.parts.encoders["text_encoder"].parameters())


@pytest.mark.parametrize("kind", [pytest.param("bitsandbytes-nf4", marks=quantisers)])
def test_files_that_are_quantised_are_served_as_they_are(chroma: TextSpec, tmp_path: Path, kind: str) -> None:
    import shutil

    folder = tmp_path / "saved"
    shutil.copytree(chroma.source, folder)
    engine = loaded(chroma, kind, dtype="float32")
    engine.parts.encoders["text_encoder"].save_pretrained(folder / "text_encoder")
    spec = TextSpec("tiny", str(folder), chroma.class_name)
    again = loaded(spec, dtype="float32")
    assert again.quantisation == "text_encoder: 'bitsandbytes' in 4 bits, as saved"
    assert torch.equal(embeds(again), embeds(engine))
    assert again.weights_bytes <= TextEngine.expected_bytes(spec.source, EngineOptions(device="cpu"))
    with pytest.raises(ModelUnavailable, match="is quantised already"):
        loaded(spec, kind)


@pytest.mark.parametrize("kind", [pytest.param("quanto-int4", marks=quantisers)])
def test_what_does_not_run_here_is_said_before_the_weights_are_read(
    chroma: TextSpec, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_kernel(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no kernel image is available")

    quantisation.check_runs.cache_clear()
    monkeypatch.setattr("optimum.quanto.QLinear.forward", no_kernel)
    monkeypatch.setattr("hybridge.engine.text.loading._load_encoder", None)
    said = r"quanto-int4 does not run here: saw RuntimeError in float32 on cpu: no kernel image is available"
    with pytest.raises(EngineFailure, match=said):
        loaded(chroma, kind, dtype="float32")


def test_a_library_that_is_not_installed_is_named(chroma: TextSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise quantisation.importlib.metadata.PackageNotFoundError(name)

    quantisation.check_runs.cache_clear()
    monkeypatch.setattr(quantisation.importlib.metadata, "version", absent)
    with pytest.raises(EngineFailure, match=r"quanto-int8 needs optimum-quanto. Try: pip install optimum-quanto"):
        loaded(chroma, "quanto-int8")


def test_an_unknown_kind_is_refused(chroma: TextSpec) -> None:
    with pytest.raises(EngineFailure, match="unknown quantisation 'gguf': expected one of bits"):
        loaded(chroma, "gguf")


@pytest.mark.parametrize("kind", [pytest.param("torchao-int8", marks=quantisers)])
def test_connect_keeps_whole_encoders(tmp_path: Path, kind: str) -> None:
    import hybridge
    from hybridge.client import ServerWarning

    case = case_of("ChromaPipeline")
    spec = saved(case, tmp_path)
    texts = [TextSpec("tiny", spec.source, spec.class_name, quantisation=kind)]
    pipe = case.load(tmp_path)
    with (
        serving(texts) as server,
        pytest.warns(ServerWarning, match=f"quantised to {kind}"),
    ):
        hybridge.connect(pipe, server, parts="text").undo()


def test_headers_of_files_are_read_alone(chroma: TextSpec) -> None:
    with safe_open(Path(chroma.source) / "text_encoder" / "model.safetensors", "pt") as file:
        numbers = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 - no dictionary
    assert TextEngine.expected_bytes(chroma.source, EngineOptions(device="cpu")) == 2 * numbers
    assert TextEngine.expected_bytes(chroma.source, EngineOptions(device="cpu"), "quanto-int8") < 2 * numbers


def test_files_of_other_layouts_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    spec = saved(case_of("ChromaPipeline"), tmp_path)
    path = Path(spec.source) / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    key = next(name for name in weights if name.endswith("SelfAttention.q.weight"))
    scaled = {key: weights[key].to(torch.float8_e4m3fn), key.replace(".weight", ".scale_weight"): torch.ones(())}
    save_file({**weights, **scaled}, path)
    with pytest.raises(ModelUnavailable, match=r"fp8 with scales, which transformers does not read.*scale_weight"):
        loaded(spec)
    path.rename(path.with_suffix(".gguf"))
    with pytest.raises(ModelUnavailable, match=r"saw model.gguf, expected .*Try: the weights in 16 bits, and"):
        loaded(spec)
