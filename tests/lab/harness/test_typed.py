"""JSON as the dataclasses that describe it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pytest

from hybridge.lab.harness.typed import Misshapen, parse


@dataclass(frozen=True)
class Inner:
    count: int
    share: float | None = None


class Pair(NamedTuple):
    left: str
    right: str


@dataclass(frozen=True)
class Whole:
    name: str
    kind: Literal["a", "b"]
    class_name: str = field(metadata={"key": "class"})
    inner: Inner = Inner(0)
    many: tuple[Inner, ...] = ()
    by_name: dict[str, float] = field(default_factory=dict)
    anything: Any = None


GOOD: dict[str, Any] = {"name": "one", "kind": "a", "class": "C"}


def test_what_fits_is_read() -> None:
    more = {"many": [{"count": 2, "share": 0.5}], "by_name": {"x": 1}, "anything": [None], "beyond": 3}
    read = parse(Whole, {**GOOD, **more})
    assert read == Whole("one", "a", "C", many=(Inner(2, 0.5),), by_name={"x": 1}, anything=[None])
    assert parse(Whole, {**GOOD, "many": ({"count": 2},)}).many == (Inner(2),)


def test_what_has_a_default_may_be_null() -> None:
    assert parse(Whole, {**GOOD, "inner": None, "many": None}) == Whole("one", "a", "C")


def test_what_may_be_null_and_has_no_default_must_be_there() -> None:
    @dataclass(frozen=True)
    class Timed:
        wall_s: float | None

    assert parse(Timed, {"wall_s": None}) == Timed(None)
    with pytest.raises(Misshapen, match="the record without wall_s"):
        parse(Timed, {})


def test_a_named_tuple_is_read_by_its_names() -> None:
    assert parse(dict[str, Pair], {"x": {"right": "b", "left": "a"}}) == {"x": Pair("a", "b")}
    with pytest.raises(Misshapen, match="the record, right: None instead of text"):
        parse(Pair, {"left": "a"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "the record without name"),
        ({"class": None}, "the record without class"),
        ({"kind": "c"}, "the record, kind: 'c' instead of a, b"),
        ({"inner": {"count": True}}, "the record, inner, count: True instead of int"),
        ({"inner": [1]}, r"the record, inner: \[1\] instead of an object"),
        ({"many": [{"count": 1}, {"count": "2"}]}, "the record, many 1, count: '2' instead of int"),
        ({"many": {}}, "the record, many: {} instead of a list"),
        ({"by_name": {"x": "much"}}, "the record, by_name, x: 'much' instead of a number"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Misshapen, match=message):
        parse(Whole, {**GOOD, **changes})
