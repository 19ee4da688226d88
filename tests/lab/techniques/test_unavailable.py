"""Techniques that are known and cannot be put in force: each says why, and leaves the pipeline alone."""

from __future__ import annotations

import pytest

from hybridge.errors import RequestError
from hybridge.lab.techniques import stack
from hybridge.lab.techniques.catalogue import TECHNIQUES
from hybridge.lab.techniques.facts import FACTS
from hybridge.lab.techniques.pipeline_context import PipelineContext
from hybridge.lab.techniques.requirements import CONDITIONS

#: What is said of each: outcome, a word of the reason, what lives in its place.
UNAVAILABLE = {
    "cuda-versions": ("unavailable", "torch", "one record for each version: the environment is part of it"),
    "remote-text": ("unavailable", "prompts", "batch-processing"),
    "onediff": ("dead", "nexfort wants torch <= 2.5.1", "compile"),
    "xdit": ("unavailable", "xfuser", "guidance split over two processes by hand"),
    "pruna": ("unavailable", "pruna", "deepcache"),
    "core-ml": ("unavailable", "macOS", "openvino elsewhere"),
}


def test_they_are_not_among_the_ways_that_the_readme_counts() -> None:
    assert sum(facts.unavailable is None for facts in FACTS.values()) > 60  # "more than sixty"


def test_these_are_all() -> None:
    assert {facts.name for facts in FACTS.values() if facts.unavailable} == set(UNAVAILABLE)


@pytest.mark.parametrize("name", UNAVAILABLE)
def test_it_says_why_and_what_lives(name: str, context: PipelineContext) -> None:
    outcome, word, instead = UNAVAILABLE[name]
    before = dict(context.pipe.components)
    (step,) = stack.apply(context, [TECHNIQUES[name]])
    assert step.applied is None
    assert step.failure is None
    assert step.missing is not None
    assert step.missing.outcome == outcome
    assert word in step.missing.reason
    assert instead in str(step.missing.instead)
    with pytest.raises(RequestError, match="cannot be applied"):
        TECHNIQUES[name].apply(context)
    assert context.pipe.components == before


def test_every_requirement_is_a_condition_that_can_be_asked() -> None:
    required = {one.that.split()[0] for facts in FACTS.values() for one in facts.requires}
    assert required == CONDITIONS.keys()
