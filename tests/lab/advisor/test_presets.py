"""Presets: names that there are, orders that can be, and nothing that a CPU cannot do well."""

from __future__ import annotations

import pytest

from hybridge.errors import RequestError
from hybridge.lab.advisor.presets import PRESETS, Kind, Recipe, kind_of, preset_named
from hybridge.lab.techniques import stack
from hybridge.lab.techniques.catalogue import TECHNIQUES, named
from hybridge.lab.techniques.compatibility import between, must_precede, one_of

RECIPES = [(preset.name, kind, recipe) for preset in PRESETS.values() for kind, recipe in preset.recipes.items()]


def test_these_are_the_presets() -> None:
    assert list(PRESETS) == ["fastest", "under-4gb", "under-6gb", "under-8gb", "best-quality", "hybrid"]
    assert all(set(preset.recipes) == {"cuda", "cpu"} for preset in PRESETS.values())


@pytest.mark.parametrize(("name", "kind", "recipe"), RECIPES, ids=lambda value: value if type(value) is str else "")
def test_every_recipe_goes_together_in_its_order(name: str, kind: Kind, recipe: Recipe) -> None:
    techniques = recipe.techniques
    for place, first in enumerate(techniques):
        for second in techniques[place + 1 :]:
            clash = between(first, second)
            assert first != second
            assert one_of(first, second) is None
            assert clash is None or clash.rule != "never together", clash
            assert must_precede(second, first) is None
    assert set(recipe.essential) <= set(techniques)
    assert recipe.reason
    if set(techniques) <= set(TECHNIQUES):
        rows = named(techniques)
        stack.check(rows)
        assert stack.in_order(rows) == rows


def test_a_cpu_never_gets_float16() -> None:
    for name, kind, recipe in RECIPES:
        assert "fp16" not in recipe.techniques or kind == "cuda", name


def test_a_cpu_saves_nothing_by_what_would_stay_in_its_memory() -> None:
    kept_in_memory = {"model-offload", "sequential-offload", "group-offload"}
    for name, kind, recipe in RECIPES:
        assert kind == "cuda" or not kept_in_memory & set(recipe.techniques), name


def test_only_hybrid_needs_a_server() -> None:
    assert {name for name, _, recipe in RECIPES if "remote-vae" in recipe.techniques} == {"hybrid"}
    assert all("remote-vae" in recipe.essential for recipe in PRESETS["hybrid"].recipes.values())


def test_other_accelerators_take_the_recipes_of_cuda() -> None:
    assert [kind_of(name) for name in ("cpu", "cuda", "mps", "xpu")] == ["cpu", "cuda", "cuda", "cuda"]


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    assert preset_named("hybrid").name == "hybrid"
    with pytest.raises(RequestError, match="under-6gb") as caught:
        preset_named("under-6-gb")
    assert caught.value.hint == "under-6gb"
