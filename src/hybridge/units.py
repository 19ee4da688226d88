"""Bytes and seconds: read from what people type, and written for people to read."""

from __future__ import annotations

import math
import re
from decimal import Decimal

from .errors import RequestError

#: Larger numbers of bytes do not fit a signed 64-bit integer, in which operating systems count them.
_MOST_BYTES = 2**63 - 1

#: Powers of 1000 (6GB, 6G) and of 1024 (6GiB, 6Gi), as in the SI and in IEC 80000-13; the case does not matter.
_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for base, suffixes in ((1000, ("", "b")), (1024, ("i", "ib")))
    for suffix in suffixes
    for power, prefix in enumerate("kmgt", start=1)
}


def parse_bytes(amount: int | float | str, *, small_unit: str = "B") -> int:
    """A number of bytes from a number or from text such as ``2GiB``, ``800 MiB``, ``1.5GB`` or ``6g``.

    Args:
        amount: Without a unit it counts bytes.
        small_unit: What a number below 1024 without a unit counts instead.

    Raises:
        RequestError: for anything else, for less than one byte, and for 2**63 bytes and more.
    """
    match = re.fullmatch(r"\s*(\d{1,25}(?:\.\d{0,25})?|\.\d{1,25})\s*([A-Za-z]*)\s*", str(amount))
    unit = match[2].lower() if match else ""
    if match is None or unit not in _UNITS:
        raise RequestError(
            "not an amount of memory", saw=_quoted(amount), expected="such as 6GB, 8GiB, 512MiB or 1500000000"
        )
    number = Decimal(match[1])
    if not unit and number < 1024:
        unit = small_unit.lower()
    count = int(number * _UNITS[unit])
    if not 1 <= count <= _MOST_BYTES:
        expected = "at least one byte" if count < 1 else "less than 8 EiB (2**63 bytes)"
        raise RequestError("not an amount of memory", saw=_quoted(amount), expected=expected)
    return count


def _quoted(amount: object) -> str:
    text = repr(amount)
    return text if len(text) <= 40 else f"{text[:36]}…"


def format_bytes(count: float, *, decimal: bool = False, up: bool = False) -> str:
    """A number of bytes for people: ``1.5 GiB``, or ``1.61 GB`` where ``decimal``.

    Args:
        count: Zero or more.
        decimal: Powers of 1000, as on a card's box, instead of powers of 1024.
        up: Round up, so that a limit which is read off the text is never too small.  Otherwise to the nearest.
    """
    base, units = (1000, ("B", "kB", "MB", "GB")) if decimal else (1024, ("B", "KiB", "MiB", "GiB"))
    power = 0
    while count >= base ** (power + 1) and power + 1 < len(units):
        power += 1
    steps = 1 if count >= 100 * base**power or not power else 100
    value = count * steps / base**power
    value = math.ceil(value) if up else round(value)
    return f"{value / steps:.10g} {units[power]}"


def format_seconds(seconds: float) -> str:
    """Seconds as a number of three digits, without the unit, which columns name: ``0.123``, ``12.3``, ``1234``."""
    if seconds >= 100:
        return f"{seconds:.0f}"
    return f"{seconds:.1f}" if seconds >= 10 else f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.3g}"
