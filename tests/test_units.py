"""Bytes and seconds as people type and read them, and every place where they do."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from hybridge.cli.application import application
from hybridge.errors import RequestError
from hybridge.server.settings import Settings
from hybridge.units import format_bytes, format_seconds, parse_bytes

AMOUNTS = {
    "6GB": 6 * 10**9,
    "6G": 6 * 10**9,
    "6gb": 6 * 10**9,
    "6 GiB": 6 * 2**30,
    "6gi": 6 * 2**30,
    "0.5GiB": 2**29,
    ".5GiB": 2**29,
    "512MiB": 2**29,
    "1.5TB": 15 * 10**11,
    " 2 kB ": 2000,
    "64": 64,
    "64B": 64,
    "9007199254740993": 9007199254740993,  # which no float is
}

NO_AMOUNTS = (
    *("", " ", "NaN", "nan", "inf", "-inf", "-1GiB", "+6GB", "0", "0GB", "0.1", "1e9", "2 apples", "6GBB", "GB"),
    *("9" * 400, "9" * 24 + "GB", "8388608TiB", "6,5GB", "six", "1.2.3GB"),
)


@pytest.mark.parametrize(("text", "count"), AMOUNTS.items())
def test_amounts(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(("number", "count"), [(5000, 5000), (1.5e9, 1_500_000_000)])
def test_numbers_are_bytes(number: float, count: int) -> None:
    assert parse_bytes(number) == count


@pytest.mark.parametrize(
    "text", [*NO_AMOUNTS, 0, -5, float("nan"), float("inf"), -float("inf"), 2**63, 1e300, True, b"6GB", [6]]
)
def test_what_is_no_amount_is_refused_in_a_sentence(text: object) -> None:
    with pytest.raises(RequestError, match=r"^not an amount of memory: saw .*, expected ") as caught:
        parse_bytes(text)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 130


@pytest.mark.parametrize(
    ("text", "count"), [("6", 6 * 10**9), ("6.5", 65 * 10**8), ("6000000000", 6 * 10**9), ("6GiB", 6 * 2**30)]
)
def test_small_numbers_may_count_something_else(text: str, count: int) -> None:
    assert parse_bytes(text, small_unit="GB") == count


def run(*arguments: str) -> str:
    done = CliRunner().invoke(application, arguments)
    assert done.exception is None, done.exception
    return done.stdout


@pytest.mark.parametrize("text", ["6GB", "6G", "6 gb"])
def test_every_flag_reads_the_same_amounts(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(memory=text).memory == 6 * 10**9  # type: ignore[arg-type]
    monkeypatch.setenv("HYBRIDGE_MEMORY", text)
    assert Settings().memory == 6 * 10**9
    made = json.loads(run("plan", "starter", "--size", "256", "--budget", text, "--json"))
    assert "5.59 GiB" in made["reason"]
    estimated = json.loads(run("lab", "estimate", "--budget", text, "--json"))
    assert estimated["setup"]["decode_budget_bytes"] == 6 * 10**9


def test_the_memory_of_a_card_may_be_a_number_of_gigabytes() -> None:
    said = [
        run("lab", "advise", "--pipeline", "sd15", "--vram", text, "--ram", "16")
        for text in ("6GB", "6", "6g", "6000000000")
    ]
    assert len(set(said)) == 1
    assert "of 6 GB" in said[0]


@pytest.mark.parametrize("text", ["NaN", "inf", "-6GB", "9" * 400, "six"])
@pytest.mark.parametrize(
    "command",
    [
        ("plan", "starter", "--budget"),
        ("lab", "advise", "--vram"),
        ("lab", "estimate", "--budget"),
        ("bench", "vae", "starter", "--budget"),
        ("serve", "--port", "0", "--memory"),
    ],
    ids=" ".join,
)
def test_every_flag_refuses_what_is_no_amount(command: tuple[str, ...], text: str) -> None:
    done = CliRunner().invoke(application, [*command, text])
    assert type(done.exception).__module__ == "hybridge.errors", done.exception
    assert "such as 6GB, 8GiB, 512MiB" in str(done.exception)


@pytest.mark.parametrize("flag", ["--spool-gib", "--grace-s", "--deadline-s", "--head-timeout-s"])
@pytest.mark.parametrize("text", ["nan", "inf"])
def test_numbers_of_the_server_are_finite(flag: str, text: str) -> None:
    done = CliRunner().invoke(application, ["serve", "--port", "0", flag, text])
    assert type(done.exception).__module__ == "hybridge.errors", done.exception
    assert "finite" in str(done.exception)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (5, "5 B"),
        (2**20, "1 MiB"),
        (1536 * 2**20, "1.5 GiB"),
        (2**30 + 1, "1 GiB"),
        (640 * 2**20, "640 MiB"),
        (3 * 2**40, "3072 GiB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_decimal_bytes() -> None:
    numbers = (999, 1500, 7.24e9, 12.346e9, 123_456_789)
    assert [format_bytes(n, decimal=True) for n in numbers] == ["999 B", "1.5 kB", "7.24 GB", "12.35 GB", "123 MB"]


def test_a_limit_that_is_read_off_is_never_too_small() -> None:
    assert [format_bytes(n, up=True) for n in (5, 2**20, 2**30 + 1)] == ["5 B", "1 MiB", "1.01 GiB"]
    for count in range(1, 10**12, 10**12 // 997):
        assert parse_bytes(format_bytes(count, up=True)) >= count
        assert parse_bytes(format_bytes(count, up=True, decimal=True)) >= count


def test_seconds_have_three_digits() -> None:
    assert [format_seconds(n) for n in (0.01234, 1.234, 12.34, 123.4)] == ["0.0123", "1.23", "12.3", "123"]
