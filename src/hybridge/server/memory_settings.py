"""How the settings about memory are read."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..errors import RequestError
from ..units import parse_bytes


def read_bytes(value: object) -> object:
    """Return the bytes of a number or of a text such as 6GB; None stays None.

    Raises:
        ValueError: says what was expected.
    """
    if value is None:
        return None
    try:
        return parse_bytes(value)  # type: ignore[arg-type] # whatever is neither number nor text is refused there
    except RequestError as error:
        raise ValueError(error.expected) from None


def read_bytes_or_none(value: object) -> object:
    """Return what :func:`read_bytes` does, and 0 for 0."""
    return 0 if str(value).strip() == "0" else read_bytes(value)


def checked_folder(value: Path | None) -> Path | None:
    """Return a folder that can be written to.

    Raises:
        ValueError: when it cannot.
    """
    if value is not None:
        try:
            tempfile.TemporaryFile(dir=value).close()
        except OSError as error:
            raise ValueError(f"a folder that can be written to ({error.strerror})") from None
    return value
