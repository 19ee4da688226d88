"""Parse and format sizes in bytes and durations in seconds."""

from __future__ import annotations

import math
import re
from decimal import Decimal

from .errors import RequestError

#: Largest number of bytes: operating systems count them in signed 64-bit integers.
_MOST_BYTES = 2**63 - 1

#: Powers of 1000 (6GB, 6G) and of 1024 (6GiB, 6Gi), as in the SI and in IEC 80000-13; case is ignored.
_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for base, suffixes in ((1000, ("", "b")), (1024, ("i", "ib")))
    for suffix in suffixes
    for power, prefix in enumerate("kmgt", start=1)
}


def parse_bytes(amount: int | float | str, *, small_unit: str = "B") -> int:
    """Return the bytes of a number or of a text such as ``2GiB``, ``800 MiB``, ``1.5GB`` or ``6g``.

    Args:
        amount: The size; in bytes if it has no unit.
        small_unit: The unit of a number below 1024 without a unit.

    Raises:
        RequestError: for any other text, for less than one byte, and for 2**63 bytes or more.
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
    """Format a number of bytes: ``1.5 GiB``, or ``1.61 GB`` with ``decimal``.

    Args:
        count: The number of bytes, zero or more.
        decimal: Whether to use powers of 1000, as vendors of graphics cards do, instead of powers of 1024.
        up: Whether to round up, so that a limit copied from the text is never too small, instead of to the nearest.
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
    """Format seconds with three digits, without the unit, for table columns: ``0.123``, ``12.3``, ``1234``."""
    if seconds >= 100:
        return f"{seconds:.0f}"
    return f"{seconds:.1f}" if seconds >= 10 else f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.3g}"
