"""The way back of every technique leads to the pipeline that was there, not to the one on the disk."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hybridge.errors import ModelUnavailable, RequestError
from hybridge.lab.techniques.catalogue import TECHNIQUES
from hybridge.lab.techniques.evidence import watching
from hybridge.lab.techniques.pipeline_context import PipelineContext
from hybridge.lab.techniques.technique import Proof, Undo, row
from hybridge.lab.techniques.weights import weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning"),  # diffusers' own call
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]

#: Caches and compilers leave weights alone; their own tests undo them.
STAGES = {"dtype", "vae", "layout", "freeu", "fuse", "quantise", "offload", "call"}

#: Of rows that change the call alone, one for each function: the others differ in a number.
ROWS = {
    row.change if row.stage == "call" else name: name
    for name, row in reversed(TECHNIQUES.items())
    if row.stage in STAGES and row.unavailable is None
}

#: They take weights from the disk, and refuse a pipeline that has others before they change anything.
REFUSED = {"batch-processing", *(name for name, row in TECHNIQUES.items() if "quantiser" in row.kinds)}


def picture(context: PipelineContext) -> Any:
    return context.picture("a cat in the rain", seed=0, num_inference_steps=2, height=64, width=64)


@pytest.fixture
def changed(context: PipelineContext) -> PipelineContext:
    """With other weights than the disk has in every part: a VAE that was replaced, LoRAs that were merged."""
    generator = torch.Generator().manual_seed(7)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for _, tensor in weights(getattr(context.pipe, name)):
            if tensor.is_floating_point():
                tensor.data += 0.02 * torch.randn(tensor.shape, generator=generator)
    return context


@pytest.mark.parametrize("name", ROWS.values())
def test_back_to_the_weights_that_were_there(changed: PipelineContext, name: str) -> None:
    technique, context = TECHNIQUES[name], changed
    missing = technique.why_missing(context)
    if missing is not None:
        pytest.skip(missing.reason)
    before = picture(context)
    tensors = {part: dict(weights(getattr(context.pipe, part))) for part in ("unet", "vae", "text_encoder")}
    kept = {part: {key: tensor.detach().clone() for key, tensor in one.items()} for part, one in tensors.items()}
    if name in REFUSED:
        with pytest.raises((RequestError, ModelUnavailable), match="is not the weight that this pipeline has"):
            technique.apply(context)
    else:
        applied = technique.apply(context)
        if applied.undo is None:
            pytest.skip("promises no way back")
        picture(context)
        applied.undo()
    assert np.array_equal(picture(context), before)
    for part, one in kept.items():
        now = dict(weights(getattr(context.pipe, part)))
        assert all(torch.equal(now[key], tensor) for key, tensor in one.items())
        assert all(now[key].stride() == tensor.stride() for key, tensor in one.items())


def test_a_vae_that_was_put_in_since_stays_as_it_is(changed: PipelineContext) -> None:
    applied, former = TECHNIQUES["bf16"].apply(changed), changed.pipe.vae
    changed.pipe.vae = deepcopy(former)
    before = {name: tensor.clone() for name, tensor in weights(changed.pipe.vae)}
    assert applied.undo is not None
    applied.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(changed.pipe.vae))
    assert (changed.pipe.unet.dtype, former.dtype) == (torch.float32, torch.float32)


def test_layers_that_a_lora_was_loaded_around_since_get_their_weights_back(changed: PipelineContext) -> None:
    class Around(torch.nn.Module):
        """As peft does it."""

        def __init__(self, layer: torch.nn.Module) -> None:
            super().__init__()
            self.base_layer = layer

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.base_layer(given)
            return made

    before, attention = picture(changed), changed.pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1
    applied = TECHNIQUES["bf16"].apply(changed)
    attention.to_q = Around(attention.to_q)
    assert applied.undo is not None
    applied.undo()
    assert np.array_equal(picture(changed), before)


@pytest.mark.parametrize(
    ("name", "setting"),
    [("vae-tiling", "use_tiling"), ("exact-vae", "use_tiling"), ("vae-slicing", "use_slicing")],
)
def test_tiles_and_slices_that_were_on_are_on_again(context: PipelineContext, name: str, setting: str) -> None:
    vae = context.pipe.vae
    setattr(vae, setting, True)
    assert TECHNIQUES[name].why_missing(context) is None
    assert getattr(vae, setting)
    applied = TECHNIQUES[name].apply(context)
    assert applied.undo is not None
    applied.undo()
    assert getattr(vae, setting)


def test_without_room_on_the_disk_no_way_back_is_promised(
    changed: PipelineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 1000})())
    assert TECHNIQUES["bf16"].apply(changed).undo is None


def test_files_go_with_the_way_back(changed: PipelineContext) -> None:
    applied = TECHNIQUES["bf16"].apply(changed)
    assert sum(path.stat().st_size for path in changed.folder.rglob("*") if path.is_file()) > 100_000
    assert applied.undo is not None
    applied.undo()
    assert not list(changed.folder.iterdir())


def test_a_change_that_fails_half_way_is_undone_from_its_last_step() -> None:
    thing, order = SimpleNamespace(name="before"), []

    def change(_: object, undo: Undo) -> Any:
        undo.by(order.append, "first")
        undo.set(thing, "name", "after")
        undo.by(lambda: order.append(thing.name))
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        row("freeu", change).apply(thing)  # type: ignore[arg-type]
    assert (thing.name, order) == ("before", ["after", "first"])


def test_changes_are_undone_from_the_last(context: PipelineContext) -> None:
    """In another order each would put back what the other had made, and none what was there."""
    before, vae = picture(context), context.pipe.vae
    first, second = (TECHNIQUES[name].apply(context).undo for name in ("bf16", "fp16"))
    exact, tiny = (TECHNIQUES[name].apply(context).undo for name in ("exact-vae", "tiny-vae"))
    assert None not in (first, second, exact, tiny)
    with pytest.raises(RequestError, match=r"`vae` of this .* has been replaced since. Try: undoing the later"):
        exact()
    with pytest.raises(RequestError, match=r"converted again since: saw float16. Try: undoing the later"):
        first()
    for undo in (tiny, exact, second, first):
        undo()
    assert context.pipe.vae is vae
    assert np.array_equal(picture(context), before)


def test_a_change_that_notes_no_step_has_no_way_back() -> None:
    assert row("freeu", lambda *_: watching(lambda: Proof(True, ""))).apply(None).undo is None  # type: ignore[arg-type]
