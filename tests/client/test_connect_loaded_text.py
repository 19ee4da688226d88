"""``connect`` for pipelines with text encoders: a server's replace them only if they are known to be equal."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from text_pipelines import Case
from text_servers import case_of, saved, serving

import hybridge
from hybridge.client import Client, ServerWarning
from hybridge.models import TextSpec, look_up

SAID = {"prompt": "a cat in rain", "negative_prompt": "blurry"}


@dataclass
class Served:
    """A pipeline on disk, a server with its text encoders as ``tiny``, and one with a VAE beside them."""

    case: Case
    folder: Path
    server: str
    with_vae: str

    def load(self, **options: Any) -> Any:
        return self.case.load(self.folder, **options)

    def picture(self, pipe: Any) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # diffusers deprecates what it uses itself
            return self.case.picture(pipe, **SAID)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    case = case_of("StableDiffusionXLPipeline")
    folder = tmp_path_factory.mktemp("sdxl")
    spec = saved(case, folder)
    with serving([spec]) as server, serving([spec], cold=[look_up("starter")]) as with_vae:
        yield Served(case, folder, server, with_vae)


@contextlib.contextmanager
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The prompts that are sent to servers."""
    sent: list[Any] = []
    encode = Client.encode_prompt
    with monkeypatch.context() as patched:
        patched.setattr(Client, "encode_prompt", lambda *a, **o: sent.append(a[1]) or encode(*a, **o))
        yield sent


def test_equal_ones_encode_there_and_undo_restores(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = served.load()
    expected = served.picture(pipe)
    with asked(monkeypatch) as sent, hybridge.connect(pipe, served.server) as done:
        found = served.picture(pipe)
    assert [(one.part, one.model) for one in done.replaced] == [("text", "tiny")]
    assert sent == ["a cat in rain"]
    assert torch.equal(found, expected)
    with asked(monkeypatch) as sent:
        assert torch.equal(served.picture(pipe), expected)
    assert not sent


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_are_known_in_another_dtype(served: Served, dtype: torch.dtype) -> None:
    pipe = served.load(torch_dtype=dtype)
    with Client(served.server) as client:
        client.encode_prompt("a", model="tiny")  # so that the server has chosen its dtype
    done = hybridge.connect(pipe, served.server)
    assert f"computes in float32, the pipeline's in {str(dtype).removeprefix('torch.')}" in done.replaced[0].reason
    done.undo()


def merged(pipe: Any) -> None:
    """What merging a weak LoRA does to one matrix."""
    weight = next(value for name, value in pipe.text_encoder_2.named_parameters() if "q_proj.weight" in name)
    rank_one = torch.outer(
        *(torch.randn(size, generator=torch.Generator().manual_seed(0)) for size in weight.shape)
    )
    weight.data += 1e-3 * weight.std() * rank_one


def with_a_token(pipe: Any) -> None:
    """What loading a textual inversion does."""
    pipe.tokenizer.add_tokens(["<mine>"])
    pipe.text_encoder.resize_token_embeddings(max(len(pipe.tokenizer), pipe.text_encoder.config.vocab_size))


def with_a_lora(pipe: Any) -> None:
    """What an adapter of peft does: another module is around a layer."""
    layer = next(module for module in pipe.text_encoder.modules() if hasattr(module, "q_proj"))
    layer.q_proj = torch.nn.Sequential(layer.q_proj)


def without_one(pipe: Any) -> None:
    pipe.text_encoder = None


def with_encoded_negatives(pipe: Any) -> None:
    pipe.register_to_config(force_zeros_for_empty_prompt=False)


def offloaded(pipe: Any) -> None:
    pipe.text_encoder_2.to("meta")


def in_eight_bits(pipe: Any) -> None:
    weight = next(iter(pipe.text_encoder.parameters()))
    weight.requires_grad_(False).data = weight.data.to(torch.int8)


CHANGES = [
    (merged, "the weights of text_encoder_2 are not the server's"),
    (with_a_token, "text_encoder"),
    (with_a_lora, "the weights of text_encoder are not the server's"),
    (without_one, "text_encoder exists on the server only"),
    (with_encoded_negatives, "force_zeros_for_empty_prompt is False here and True there"),
    (offloaded, "the weights of text_encoder_2 are offloaded here"),
    (in_eight_bits, "the weights of text_encoder are quantised here"),
]


@pytest.mark.parametrize(("change", "why"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
def test_others_are_kept_and_a_warning_says_why(served: Served, change: Callable[[Any], None], why: str) -> None:
    pipe = served.load()
    change(pipe)
    with pytest.warns(ServerWarning, match=f"stay on this machine.*{why}"):
        done = hybridge.connect(pipe, served.with_vae, model="starter")
    assert [one.part for one in done.replaced] == ["vae"]
    done.undo()


def test_tokens_alone_tell_pipelines_apart(served: Served) -> None:
    pipe = served.load()
    pipe.tokenizer.add_tokens(["<mine>"])
    tokens = len(pipe.tokenizer)
    with pytest.warns(ServerWarning, match=f"tokenizer has {tokens} tokens here and {tokens - 1} there"):
        hybridge.connect(pipe, served.with_vae, model="starter").undo()


def test_the_servers_are_taken_all_the_same_if_asked_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = served.load()
    merged(pipe)
    with pytest.warns(ServerWarning, match="is not known to equal the pipeline's own: the weights of text_enc"):
        done = hybridge.connect(pipe, served.server, parts="text")
    with asked(monkeypatch) as sent, done:
        served.picture(pipe)
    assert sent == ["a cat in rain"]


@pytest.mark.parametrize("change", [merged, with_a_token, with_a_lora], ids=lambda one: one.__name__)
def test_what_changes_after_connect_encodes_itself(
    served: Served, change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, other = served.load(), served.load()
    change(other)
    expected = other.encode_prompt(**SAID)
    with asked(monkeypatch) as sent, hybridge.connect(pipe, served.server):
        change(pipe)
        with pytest.warns(ServerWarning, match="have changed since connect, so they encode"):
            found = pipe.encode_prompt(**SAID)
    assert not sent
    assert all(map(torch.equal, found, expected))


def test_a_server_whose_weights_were_replaced_is_not_believed(served: Served, tmp_path: Path) -> None:
    pipe = served.load()
    expected = pipe.encode_prompt(**SAID)
    tuned = served.load()
    merged(tuned)
    tuned.save_pretrained(tmp_path)
    other = TextSpec("tiny", str(tmp_path), "StableDiffusionXLPipeline")
    done = hybridge.connect(pipe, served.server)
    with serving([other]) as later, Client(later) as client:
        pipe.encode_prompt._client = client  # as if it ran at the same address
        with pytest.warns(ServerWarning, match="tiny has other weights since connect"):
            assert all(map(torch.equal, pipe.encode_prompt(**SAID), expected))
    done.undo()


def test_of_two_models_the_equal_one_is_chosen(served: Served, tmp_path: Path) -> None:
    other = served.load()
    merged(other)
    other.save_pretrained(tmp_path)
    texts = [
        TextSpec("tuned", str(tmp_path), "StableDiffusionXLPipeline"),
        TextSpec("plain", str(served.folder / "text"), "StableDiffusionXLPipeline"),
    ]
    with serving(texts) as server:
        for pipe, model in ((served.load(), "plain"), (other, "tuned")):
            with hybridge.connect(pipe, server) as done:
                assert [one.model for one in done.replaced] == [model]


def test_without_text_on_the_server_only_the_vae_is_replaced(served: Served) -> None:
    pipe = served.load()
    with serving([], cold=[look_up("starter")]) as server, hybridge.connect(pipe, server, model="starter") as done:
        assert [one.part for one in done.replaced] == ["vae"]


def test_the_fingerprint_is_there_before_the_model_is_loaded(served: Served, tmp_path: Path) -> None:
    spec = TextSpec("gone", str(tmp_path / "none"), "StableDiffusionXLPipeline")
    texts = [TextSpec("cold", str(served.folder / "text"), "StableDiffusionXLPipeline"), spec]
    with serving(texts) as server:
        cold = httpx.get(f"{server}/v1/models/cold").json()["text"]
        assert cold["state"] == "cold"
        assert cold["fingerprint"]["encoders"].keys() == {"text_encoder", "text_encoder_2"}
        assert httpx.get(f"{server}/v1/models/gone").json()["text"]["no_fingerprint"] == "no folder for gone"
        assert "fingerprint" not in httpx.get(f"{server}/v1/models").json()["models"][0]["text"]
