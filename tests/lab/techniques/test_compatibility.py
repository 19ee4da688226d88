"""Which techniques go together: the table, and what the stack makes of it.  Nothing is applied."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from hybridge.errors import RequestError
from hybridge.lab.techniques import stack
from hybridge.lab.techniques.catalogue import TECHNIQUES
from hybridge.lab.techniques.compatibility import CLASHES, ONE_OF, between, must_precede, one_of
from hybridge.lab.techniques.technique import Stage, Technique


def stand_in(name: str, stage: Stage = "call", group: str | None = None) -> Technique:
    """A row of this name that is only looked at."""

    def never(_: object) -> Any:
        raise AssertionError("a stack that is only checked is not applied")

    return Technique(
        name=name,
        title=name.upper(),
        claim="",
        source="",
        exactness="bitwise",
        stage=stage,
        apply=never,
        group=group,
    )


def stand_ins(text: str) -> list[Technique]:
    """From ``name:stage + name:stage``."""
    return [stand_in(*part.split(":")) for part in text.split(" + ")]  # type: ignore[arg-type]


def names_of(techniques: Any) -> list[str]:
    return [technique.name for technique in techniques]


def test_the_table_names_rows_that_there_are() -> None:
    named = {name for clash in CLASHES for name in (*clash.first, *clash.second)}
    named |= {name for place in ONE_OF for name in place.names}
    assert named <= TECHNIQUES.keys(), f"no such rows: {named - TECHNIQUES.keys()}"


def test_no_pair_is_in_the_table_twice() -> None:
    pairs = [frozenset(pair) for clash in CLASHES for pair in clash.pairs()]
    pairs += [frozenset(pair) for place in ONE_OF for pair in itertools.combinations(place.names, 2)]
    assert all(len(pair) == 2 for pair in pairs)
    twice = {tuple(sorted(pair)) for pair in pairs if pairs.count(pair) > 1}
    assert not twice


def test_every_row_of_the_table_gives_its_reason_and_its_way_out() -> None:
    for clash in CLASHES:
        assert clash.reason
        assert not clash.reason.endswith(".")
        assert bool(clash.remedy) == (clash.rule != "first before second"), clash


@pytest.mark.parametrize("clash", [c for c in CLASHES if c.rule == "never together"], ids=lambda c: c.first[0])
def test_what_never_goes_together_is_refused_whichever_comes_first(clash: Any) -> None:
    for first, second in clash.pairs():
        for pair in ((first, second), (second, first)):
            with pytest.raises(RequestError) as caught:
                stack.check([stand_in(name) for name in pair])
            assert clash.reason in caught.value.what
            assert caught.value.saw == " + ".join(pair)
            assert caught.value.hint == clash.remedy


@pytest.mark.parametrize("clash", [c for c in CLASHES if c.rule == "first before second"], ids=lambda c: c.first[0])
def test_an_order_that_loses_something_is_refused_and_the_right_one_named(clash: Any) -> None:
    for first, second in clash.pairs():
        right = [stand_in(first), stand_in(second)]
        stack.check(right)
        with pytest.raises(RequestError) as caught:
            stack.check(right[::-1])
        assert clash.reason in caught.value.what
        assert caught.value.expected == f"{first} + {second}"


def test_a_cured_pair_is_let_through() -> None:
    for clash in CLASHES:
        if clash.rule == "cured":
            for first, second in clash.pairs():
                stack.check([stand_in(first), stand_in(second)])


def test_a_place_is_taken_once() -> None:
    for place in ONE_OF:
        for first, second in itertools.combinations(place.names, 2):
            with pytest.raises(RequestError, match="one of the two") as caught:
                stack.check([stand_in(first), stand_in(second)])
            assert place.reason in caught.value.what


@pytest.mark.parametrize(
    ("pair", "rule"),
    [
        ("fp16 tf32", "never together"),
        ("deepcache cfg-cutoff-50", "cured"),
        ("pab cfg-cutoff-75", "cured"),
        ("deepcache stable-fast", "never together"),
        ("taylorseer compile", "never together"),
        ("group-offload-disk torchao-int8", "never together"),
        ("tiny-vae fused-qkv", "cured"),
        ("deepcache openvino", "never together"),
        ("onnxruntime sequential-offload", "never together"),
        ("tensorrt cfg-cutoff-50", "never together"),
        ("pab stable-fast", "never together"),
        ("group-offload compile", "never together"),
        ("model-offload compile", "never together"),
        ("sequential-offload compile-regional", "never together"),
    ],
)
def test_the_pairs_that_people_try(pair: str, rule: str) -> None:
    clash = between(*pair.split())
    assert clash is not None
    assert clash.rule == rule


@pytest.mark.parametrize(
    "pair",
    [
        "taylorseer cfg-cutoff-50",
        "deepcache tome-all",
        "deepcache freeu",
        "deepcache compile-regional",
        "deepcache refiner-ensemble-90",
        "stable-fast cfg-cutoff-50",
        "openvino cfg-cutoff-75",
        "tiny-vae model-offload",
        "compile-regional model-offload",
    ],
)
def test_pairs_that_are_known_to_work_are_not_in_the_table(pair: str) -> None:
    assert between(*pair.split()) is None
    assert one_of(*pair.split()) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("fused-qkv", "torchao-int8"),
        ("fused-qkv", "sequential-offload"),
        ("fused-qkv", "disk-offload"),
        ("deepcache", "model-offload"),
        ("tiny-vae", "vae-tiling"),
        ("tome-all", "stable-fast"),
    ],
)
def test_who_comes_first(first: str, second: str) -> None:
    assert must_precede(first, second) is not None
    assert must_precede(second, first) is None


def test_stages_are_in_the_order_of_the_catalogue() -> None:
    right = (
        "bf16:dtype + tiny-vae:vae + vae-slicing:vae + channels-last:layout + freeu:freeu + fused-qkv:fuse + "
        "torchao-int8:quantise + deepcache:cache + compile-regional:compile + model-offload:offload + steps-30:call"
    )
    techniques = stand_ins(right)
    stack.check(techniques)
    for wrong in itertools.islice(itertools.permutations(techniques), 1, 500, 7):
        assert names_of(stack.in_order(wrong)) == names_of(techniques)
        with pytest.raises(RequestError) as caught:
            stack.check(wrong)
        assert caught.value.expected == " + ".join(names_of(techniques))


def test_an_order_is_wrong_however_far_apart_the_two_are() -> None:
    with pytest.raises(RequestError, match="goes with it when it is replaced") as caught:
        stack.check(stand_ins("vae-tiling:vae + vae-slicing:vae + tiny-vae:vae"))
    assert caught.value.expected == "tiny-vae + vae-tiling + vae-slicing"


def test_a_clash_is_told_before_an_order() -> None:
    with pytest.raises(RequestError, match="do not go together"):
        stack.check(stand_ins("compile:compile + tiny-vae:vae + deepcache:cache"))


def test_the_same_technique_twice_is_refused() -> None:
    with pytest.raises(RequestError, match="twice"):
        stack.check(stand_ins("freeu:freeu + freeu:freeu"))


def test_two_rows_of_one_group_are_refused_though_no_table_names_them() -> None:
    with pytest.raises(RequestError, match="do the same thing"):
        stack.check([stand_in("one", "offload", "offload"), stand_in("other", "offload", "offload")])
    stack.check([stand_in("one", "offload"), stand_in("other", "offload")])
