"""Pairs of techniques on the tiny pipeline: what the table of clashes lets through works, with both proofs.

The pairs are those that are cured, those whose order matters, and those of which one would expect trouble.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from hybridge.errors import RequestError
from hybridge.lab.techniques import stack
from hybridge.lab.techniques.catalogue import TECHNIQUES, named
from hybridge.lab.techniques.compatibility import CLASHES, Clash
from hybridge.lab.techniques.pipeline_context import PipelineContext

#: Enough for caches to skip some, and for guidance to end before the last.
STEPS = 6

PROMPT = "a cat in the rain"

#: Known to go together, though one would not expect it of each.
GO_TOGETHER = (
    ("taylorseer", "cfg-cutoff-50"),
    ("freeu", "deepcache"),
    ("tome-all", "deepcache"),
    ("deepcache", "sequential-offload"),
    ("channels-last", "fused-qkv"),
    ("tiny-vae", "batch-processing"),
    ("deepcache", "refiner-ensemble-90"),
)

#: Needs a server, float16, pictures of more than 512 pixels, or a compiler of C++ and its time.
_ELSEWHERE = {"remote-vae", "vae-fp16-fix", "vae-tiling", "compile", "compile-regional", "stable-fast"}

#: Differs from another row in a number alone.
_ALIKE = {"cfg-cutoff-75"}

#: What shows itself in larger pictures or batches alone: arguments of the call that let it.
_SHOWS = {"vae-slicing": {"num_images_per_prompt": 2}, "exact-vae": {"height": 128, "width": 128}}


def allowed_pairs() -> list[tuple[str, str]]:
    """All that are cured, one for each row that wants an order, and those that are known to go together."""
    found = []
    for clash in CLASHES:
        if clash.rule != "never together":
            usable = [pair for pair in clash.pairs() if not (_ELSEWHERE | _ALIKE) & {*pair}]
            found += usable if clash.rule == "cured" else usable[:1]
    return [*found, *GO_TOGETHER]


@pytest.fixture(scope="session")
def baselines() -> dict[str, Any]:
    """Pictures of the pipeline as it is, by the arguments of the call: the same for every fresh context."""
    return {}


def marked(pairs: list[tuple[str, str]]) -> list[Any]:
    """Those with a library that is kept beside the environment are told apart."""
    beside = {name for name, row in TECHNIQUES.items() if row.stage == "quantise" and row.needs}
    return [pytest.param(pair, marks=pytest.mark.quantisers) if beside & {*pair} else pair for pair in pairs]


@pytest.mark.parametrize("pair", marked(allowed_pairs()), ids=" + ".join)
def test_a_pair_that_may_be_is_in_force_with_both_proofs(
    context: PipelineContext, pair: tuple[str, str], baselines: dict[str, Any]
) -> None:
    arguments = {"num_inference_steps": STEPS, "height": 64, "width": 64}
    for name in pair:
        arguments |= _SHOWS.get(name, {})
    if str(arguments) not in baselines:
        baselines[str(arguments)] = context.picture(PROMPT, 0, **arguments)

    steps = stack.apply(context, stack.in_order(named(pair)))
    for step in steps:
        if step.missing is not None:
            pytest.skip(step.missing.reason)
        assert step.failure is None
    context.picture(PROMPT, 0, **arguments)  # what is lost from the second picture on is lost in the next one
    with contextlib.ExitStack() as watching:
        proofs = [watching.enter_context(step.applied.witness()) for step in steps if step.applied]
        picture = context.picture(PROMPT, 0, **arguments)
        said = [proof() for proof in proofs]
    assert all(proof.took_effect for proof in said), [proof.evidence for proof in said]
    assert np.isfinite(picture).all()

    if not stack.undo(steps):
        assert np.array_equal(context.picture(PROMPT, 0, **arguments), baselines[str(arguments)])


@pytest.mark.parametrize("clash", [c for c in CLASHES if c.rule == "never together"], ids=lambda c: c.reason)
def test_a_pair_that_cannot_be_leaves_the_pipeline_alone(clash: Clash) -> None:
    refused = 0
    for first, second in clash.pairs():
        if {first, second} <= set(TECHNIQUES):
            with pytest.raises(RequestError, match="do not go together"):
                stack.apply(None, stack.in_order(named([first, second])))  # type: ignore[arg-type] # never looked at
            refused += 1
    if not refused:
        pytest.skip("no such rows yet")
