"""Pairs of techniques on the tiny pipeline: what the table of clashes lets through works, with both proofs.

The pairs are those that are cured, those whose order matters, and those of which one would expect trouble.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from hybridge.errors import RequestError
from hybridge.lab.techniques import stack
from hybridge.lab.techniques.catalogue import TECHNIQUES, named
from hybridge.lab.techniques.clashes import CLASHES, Clash
from hybridge.lab.techniques.rig import Rig

#: Enough for caches to skip some, and for guidance to end before the last.
STEPS = 6

#: Known to go together, though one would not expect it of each.
GO_TOGETHER = (
    ("taylorseer", "cfg-cutoff-50"),
    ("deepcache", "tgate"),
    ("freeu", "deepcache"),
    ("tome-all", "deepcache"),
    ("deepcache", "sequential-offload"),
    ("tiny-vae", "vae-tiling"),
    ("channels-last", "fused-qkv"),
    ("tiny-vae", "batch-processing"),
    ("deepcache", "refiner-ensemble-90"),
    ("openvino", "cfg-cutoff-50"),
)

#: Needs a server.
_ELSEWHERE = {"remote-vae"}

#: Takes a compiler of C++ and its time; what matters about it is tested with the row.
_SLOW = {"compile", "compile-regional", "stable-fast"}

#: What shows itself in larger pictures or batches alone: arguments of the call that let it.
_SHOWS = {"vae-slicing": {"num_images_per_prompt": 2}, "vae-tiling": {"height": 256, "width": 256}}


def allowed_pairs() -> list[tuple[str, str]]:
    """First, second: in the order in which they may be applied; one for each row of the table."""
    found = []
    for clash in CLASHES:
        if clash.rule != "never together":
            usable = [pair for pair in clash.pairs() if not (_ELSEWHERE | _SLOW) & {*pair}]
            found += usable if clash.rule == "cured" else usable[:2]
    return [*found, *GO_TOGETHER]


@pytest.mark.parametrize(("first", "second"), allowed_pairs(), ids=" + ".join)
def test_a_pair_that_may_be_is_in_force_with_both_proofs(rig: Rig, first: str, second: str) -> None:
    if not {first, second} <= set(TECHNIQUES):
        pytest.skip("no such row yet")
    rows = stack.in_order(named([first, second]))
    arguments = {"num_inference_steps": STEPS, "height": 64, "width": 64}
    for name in (first, second):
        arguments |= _SHOWS.get(name, {})
    before = rig.picture("a cat in the rain", 0, **arguments)

    steps = stack.apply(rig, rows)
    for step in steps:
        if step.missing is not None:
            pytest.skip(step.missing.reason)
        assert step.failure is None
    with contextlib.ExitStack() as watching:
        proofs = [watching.enter_context(step.applied.witness()) for step in steps if step.applied]
        picture = rig.picture("a cat in the rain", 0, **arguments)
        said = [proof() for proof in proofs]
    assert all(proof.took_effect for proof in said), [proof.evidence for proof in said]
    assert np.isfinite(picture).all()
    again = rig.picture("a cat in the rain", 0, **arguments)
    assert np.isfinite(again).all()

    if not stack.undo(steps):
        assert np.array_equal(rig.picture("a cat in the rain", 0, **arguments), before)


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
