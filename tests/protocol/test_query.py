"""Parameters as text."""

from __future__ import annotations

import pytest

from hybridge.errors import RequestError
from hybridge.protocol.query import Parameters, format_query


def one(value: object) -> Parameters:
    return Parameters([("x", value)])


def test_queries_are_written_as_diffusers_writes_them() -> None:
    written = format_query(
        {
            "shape": [1, 4, 64, 64],
            "dtype": "float16",
            "partial_postprocess": False,
            "do_scaling": True,
            "seed": None,
        }
    )
    assert written == ("shape=1&shape=4&shape=64&shape=64&dtype=float16&partial_postprocess=False&do_scaling=True")


def test_queries_escape_text() -> None:
    assert format_query({"key": "a b&c=ü"}) == "key=a+b%26c%3D%C3%BC"


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        (["1", "4", "64", "64"], (1, 4, 64, 64)),
        (["7"], (7,)),
        (["[1, 4, 64, 64]"], (1, 4, 64, 64)),
        (["1,4,64,64"], (1, 4, 64, 64)),
        (["[1,4"], (1, 4)),  # forgiving about brackets: nothing else can be meant
        ([" 1 , 4 "], (1, 4)),
        ([[1, 4, 64, 64]], (1, 4, 64, 64)),
        ([["1", "4"]], (1, 4)),
        (["None"], None),
        ([], None),
    ],
)
def test_shape_spellings(values: list[object], shape: tuple[int, ...] | None) -> None:
    assert Parameters([("shape", value) for value in values]).shape() == shape


@pytest.mark.parametrize(
    "value", ["1,,4", "one", "1.0", "1_0", "٣", "1e3", [1.0], [True], [[1]], {"a": 1}, "[]", "9" * 30]
)
def test_shapes_that_are_none(value: object) -> None:
    with pytest.raises(RequestError, match="shape is not a whole number"):
        Parameters([("shape", value)]).shape()


@pytest.mark.parametrize("name", ["float16", "float32", "bfloat16", "uint8"])
def test_dtypes(name: str) -> None:
    assert Parameters([("dtype", name)]).dtype() == name


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (["float16", "fp16", "half", "torch.float16", "torch.half", "FP16"], "float16"),
        (["bfloat16", "bf16", "torch.bfloat16"], "bfloat16"),
        (["float32", "fp32", "float", "torch.float32", "torch.float"], "float32"),
        (["uint8", "torch.uint8"], "uint8"),
    ],
)
def test_dtypes_by_torchs_names(names: list[str], dtype: str) -> None:
    assert {Parameters([("dtype", name)]).dtype() for name in names} == {dtype}


def test_float64_is_told_what_to_be() -> None:
    with pytest.raises(RequestError, match=r"Try: tensor\.float\(\)"):
        Parameters([("dtype", "float64")]).dtype()


@pytest.mark.parametrize("name", ["float64", "torch.float64", "double", "float8_e4m3fn", 16])
def test_unknown_dtypes(name: object) -> None:
    with pytest.raises(RequestError, match="expected one of float16, float32, bfloat16, uint8"):
        Parameters([("dtype", name)]).dtype()


def test_unknown_choice_names_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"unknown dtype: saw 'flaot16', .* Try: dtype=float16"):
        Parameters([("dtype", "flaot16")]).dtype()


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("True", True),
        ("true", True),
        ("1", True),
        (True, True),
        (1, True),
        ("False", False),
        ("FALSE", False),
        ("0", False),
        (False, False),
        (0, False),
        ("", None),
        ("None", None),
        ("null", None),
        (None, None),
    ],
)
def test_booleans(value: object, read: bool | None) -> None:
    assert one(value).boolean("x") is read


@pytest.mark.parametrize("value", ["yes", "2", 2, 1.5, "truee", {"a": 1}])
def test_what_is_no_boolean(value: object) -> None:
    with pytest.raises(RequestError, match="x is not a boolean"):
        one(value).boolean("x")


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("0.18215", 0.18215),
        ("1e-3", 0.001),
        ("-2", -2.0),
        (3, 3.0),
        (0.5, 0.5),
        ("5e-324", 5e-324),
        (" 1 ", 1.0),
        ("", None),
        ("none", None),
    ],
)
def test_numbers(value: object, read: float | None) -> None:
    assert one(value).number("x") == read


@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity", "1e999", "0x1", "a", True, float("nan"), 10**400, {}])
def test_what_is_no_finite_number(value: object) -> None:
    with pytest.raises(RequestError, match="x is not a number"):
        one(value).number("x")


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("12", 12),
        ("+3", 3),
        ("-3", -3),
        (" 8 ", 8),
        ("\x1c5", 5),  # white space to str.strip, but not to int
        ("\N{NO-BREAK SPACE}5", 5),
        (str(2**63 - 1), 2**63 - 1),  # a seed may have 63 bits
        (2**63 - 1, 2**63 - 1),
        ("", None),
    ],
)
def test_integers(value: object, read: int | None) -> None:
    assert one(value).integer("x") == read


@pytest.mark.parametrize(
    "value", ["1.0", 1.0, True, "1_000", "²", "٣", str(2**63), 2**63, -(2**63), "9" * 5000, [[]]]
)
def test_what_is_no_integer(value: object) -> None:
    with pytest.raises(RequestError, match="x is not a whole number"):
        one(value).integer("x")


@pytest.mark.parametrize(("value", "fits"), [(0, False), (1, True), (100, True), (101, False), (-5, False)])
def test_integer_bounds(value: int, fits: bool) -> None:
    if fits:
        assert one(value).integer("x", least=1, most=100) == value
    else:
        with pytest.raises(RequestError, match=f"x is out of range: saw {value}, expected 1 to 100"):
            one(value).integer("x", least=1, most=100)


def test_integer_with_a_lower_bound_only() -> None:
    with pytest.raises(RequestError, match="saw -1, expected at least 0"):
        one("-1").integer("x", least=0)


def test_a_value_sent_twice_is_refused() -> None:
    with pytest.raises(RequestError, match="x was sent 2 times"):
        Parameters([("x", "1"), ("x", "2")]).integer("x")


def test_an_absent_spelling_does_not_count_as_a_second_value() -> None:
    assert Parameters([("x", "None"), ("x", "2")]).integer("x") == 2


def test_presence() -> None:
    parameters = Parameters([("here", "0"), ("empty", ""), ("none", None), ("list", [])])
    assert [name in parameters for name in ("here", "empty", "none", "list", "missing")] == [True, *[False] * 4]


def test_unknown_parameters_are_refused_by_name() -> None:
    with pytest.raises(RequestError, match=r"unknown parameter: saw 'scaling_facto', .* Try: scaling_factor$"):
        Parameters([("scaling_facto", "1")]).refuse_unknown(["scaling_factor", "shift_factor"])


def test_a_hint_never_names_an_ignored_parameter() -> None:
    with pytest.raises(RequestError) as caught:
        Parameters([("output_type", "pt")]).refuse_unknown(["seed"])
    assert caught.value.hint is None


def test_ignorable_parameters_pass() -> None:
    ignorable = ("input_tensor_type", "output_tensor_type", "return_type", "key")
    Parameters([(name, "x") for name in ignorable]).refuse_unknown([])


def test_a_strangers_value_is_cut_short_in_the_message() -> None:
    with pytest.raises(RequestError) as caught:
        one("y" * 10_000).integer("x")
    assert len(str(caught.value)) < 200
