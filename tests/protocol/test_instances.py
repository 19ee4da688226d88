"""Several requests in one JSON body, which strangers write."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridge.errors import RequestError
from hybridge.protocol.instances import read_instances
from hybridge.protocol.json_bodies import read_json_body

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NAMES = ("inputs", "parameters", "model", "task", "prompt")
INSTANCES = st.lists(
    VALUES | st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, VALUES)),
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({"instances": INSTANCES | VALUES}, optional={"parameters": VALUES, "more": VALUES}))
def test_anything_is_read_or_refused(document: dict[str, Any]) -> None:
    try:
        found = read_instances(json.dumps(document).encode(), 3)
    except RequestError:
        return
    assert found is not None
    assert all(isinstance(json.loads(one.body), dict) for one in found)


def test_long_texts_stay_as_they_came() -> None:
    """Base64 that is longer than what is parsed with the rest, with the escapes that some languages write."""
    first, second = b"AAAA" * 5000, b"AB\\/D" * 2000
    instances = b'[{"inputs": "%b"}, {"parameters": {"a": 1}, "inputs": "%b"}]' % (first, second)
    body = b'{"instances": %b, "parameters": {"a": 2, "b": 3}}' % instances
    one, two = read_instances(body, 2) or []
    assert read_json_body(one.body) == (bytes(15000), {"a": 2, "b": 3})
    assert read_json_body(two.body)[1] == {"a": 1, "b": 3}
    assert len(read_json_body(two.body)[0]) == 6000


@pytest.mark.parametrize("body", [b'{"inputs": "AA=="}', b'[{"instances": 1}]', b'{"a": "instances"}'])
def test_other_bodies(body: bytes) -> None:
    assert read_instances(body, 2) is None


@pytest.mark.parametrize("depth", range(850, 1000, 10))
def test_deep_brackets(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    body = b'{"instances": [{"inputs": "AA==", "parameters": {"a": %b}}]}' % nested
    with contextlib.suppress(RequestError):
        assert read_instances(body, 2)
