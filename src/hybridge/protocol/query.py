"""Read and write parameters as text in queries.

diffusers writes Python's ``True`` and repeats ``shape``; HTTP libraries disagree on both and on ``None``.  So this
module formats queries itself, and reads every known spelling.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

from ..errors import RequestError, UnknownParameter
from .tensor import ITEM_BYTES, MAX_AXES

Choice = TypeVar("Choice", bound=str)

#: Parameters that SD.Next sends, or users who pass diffusers' other arguments; they do not change the answer.
#: ``key`` belongs to authentication.
IGNORED = frozenset({"input_tensor_type", "output_tensor_type", "return_type", "key"})

#: Most fields of a query string; there are about 20 parameters, and ``shape`` is repeated.
_MAX_FIELDS = 64

#: Most characters of a client's wrong text that are repeated in an error.
_SHOWN = 60

#: The wire's dtypes by their names and torch's aliases; each may have the prefix ``torch.``, as ``str()`` writes
#: it.
_DTYPE_ALIASES = {
    **{name: name for name in ITEM_BYTES},
    **{"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"},
}

_ABSENT = frozenset({"", "none", "null"})
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
#: Largest axis, side or seed; Python's own integers are unbounded.
_MAX_INTEGER = 2**63 - 1


def format_query(parameters: Mapping[str, object]) -> str:
    """Format a query as diffusers does: a list repeats its name, bools are ``True``/``False``, None is omitted."""
    return urlencode({name: value for name, value in parameters.items() if value is not None}, doseq=True)


def read_query(query: str) -> list[tuple[str, str]]:
    """Return the names and values of a query string.

    Raises:
        RequestError: for more fields than any request needs.
    """
    try:
        return parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise RequestError(
            "the query string cannot be read", saw=str(error), expected=f"at most {_MAX_FIELDS} fields"
        ) from None


class Parameters:
    """The named values of one request, with a method to read each type.

    Every method returns None when the parameter is absent (or written as an empty text or as ``None``, which some
    HTTP libraries do), and raises :class:`RequestError` when the value does not have the method's type.

    Args:
        pairs: (name, value); values are query texts or JSON values; names may repeat.
    """

    def __init__(self, pairs: Iterable[tuple[str, Any]]) -> None:
        self._values: dict[str, list[Any]] = {}
        for name, value in pairs:
            values = value if isinstance(value, list) else [value]
            present = [v for v in values if not (v is None or (isinstance(v, str) and v.lower() in _ABSENT))]
            self._values.setdefault(name, []).extend(present)

    def __contains__(self, name: str) -> bool:
        return bool(self._values.get(name))

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Raise UnknownParameter for a name that is neither known nor ignored, with the nearest known name."""
        names = set(known) | IGNORED
        for name in self._values:
            if name in names:
                continue
            near = difflib.get_close_matches(name[:_SHOWN], sorted(names - IGNORED), n=1)
            raise UnknownParameter(
                "unknown parameter",
                saw=_shown(name),
                expected="one of " + ", ".join(sorted(names - IGNORED)),
                hint=f"{near[0]}" if near else None,
            )

    def shape(self) -> tuple[int, ...] | None:
        """Return ``shape``, repeated once per axis, or given as ``[1,4,64,64]`` or ``1,4,64,64``."""
        values = self._values.get("shape") or []
        if len(values) == 1 and isinstance(values[0], str) and not _INTEGER.fullmatch(values[0].strip()):
            text = values[0].strip().removeprefix("[").removesuffix("]")
            values = [part.strip() for part in text.split(",", MAX_AXES)]
        if len(values) > MAX_AXES:
            raise RequestError("impossible shape", saw="more", expected=f"1 to {MAX_AXES} axes")
        return tuple(_integer("shape", value) for value in values) or None

    def dtype(self) -> str | None:
        """Return ``dtype``, one of the wire's four dtypes, given by its own name or one of torch's."""
        value = self._one("dtype")
        if isinstance(value, str) and value.lower().removeprefix("torch.") in ("float64", "double"):
            raise RequestError(
                "unknown dtype", saw=repr(value), expected="one of " + ", ".join(ITEM_BYTES), hint="tensor.float()"
            )
        alias = _DTYPE_ALIASES.get(value.lower().removeprefix("torch.")) if isinstance(value, str) else None
        return alias or self.choice("dtype", {name: name for name in ITEM_BYTES})

    def integer(self, name: str, *, least: int | None = None, most: int | None = None) -> int | None:
        """Return an integer within [least, most]."""
        value = self._one(name)
        if value is None:
            return None
        number = _integer(name, value)
        if (least is not None and number < least) or (most is not None and number > most):
            bounds = f"at least {least}" if most is None else f"{least} to {most}"
            raise RequestError(f"{name} is out of range", saw=number, expected=bounds)
        return number

    def number(self, name: str) -> float | None:
        """Return a finite number."""
        value = self._one(name)
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise RequestError(f"{name} is not a number", saw=_shown(value), expected="a finite number")
        return number

    def boolean(self, name: str) -> bool | None:
        """Return a bool, given as ``True``/``False`` in upper or lower case, or as 1/0."""
        value = self._one(name)
        if value is None or isinstance(value, bool):
            return value
        read = _BOOLEANS.get(str(value).lower())
        if read is None:
            raise RequestError(f"{name} is not a boolean", saw=_shown(value), expected="True or False")
        return read

    def choice(self, name: str, allowed: Mapping[str, Choice]) -> Choice | None:
        """Return the value of ``allowed`` for the given spelling."""
        value = self._one(name)
        if value is None:
            return None
        text = str(value).lower()
        if text not in allowed:
            near = difflib.get_close_matches(text[:_SHOWN], allowed, n=1)
            raise RequestError(
                f"unknown {name}",
                saw=_shown(value),
                expected="one of " + ", ".join(allowed),
                hint=f"{name}={near[0]}" if near else None,
            )
        return allowed[text]

    def _one(self, name: str) -> Any:
        values = self._values.get(name) or [None]
        if len(values) > 1:
            raise RequestError(f"{name} was sent {len(values)} times", saw=_shown(values), expected="one value")
        return values[0]


def _integer(name: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_INTEGER:
        return value
    # int() would also accept underscores and the digits of other scripts.
    if isinstance(value, str) and _INTEGER.fullmatch(text := value.strip()) and abs(int(text)) <= _MAX_INTEGER:
        return int(text)
    raise RequestError(f"{name} is not a whole number", saw=_shown(value), expected="digits")


def _shown(value: Any) -> str:
    """Return a client's value, shortened for an error message."""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = str(type(value).__name__)
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
