"""JSON from a file as the dataclasses that describe it, with the place of whatever is not as they say."""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Shape = TypeVar("Shape")


class Misshapen(Exception):
    """Where a record is not what its dataclass says."""


def parse(shape: type[Shape], value: Any, where: str = "the record") -> Shape:
    """The value as ``shape`` has it.

    A shape is a dataclass, a NamedTuple, ``tuple[X, ...]``, ``dict[str, X]``, ``X | None``, a Literal, ``Any`` or a
    plain type.  A field with a default may be missing or null; keys that no field has are left out.  The key of a
    field is its name, or ``metadata["key"]``.

    Raises:
        Misshapen: and says where.
    """
    found: Shape = _parse(shape, value, where)
    return found


def _parse(shape: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(shape), get_args(shape)
    if origin in (Union, types.UnionType):  # with None
        return None if value is None else _parse(inner[0], value, where)
    if is_dataclass(shape):
        return _parse_fields(shape, value, where)
    if hasattr(shape, "_fields"):
        _of(dict, value, where)
        return shape(*(_parse(kind, value.get(name), f"{where}, {name}") for name, kind in _hints(shape).items()))
    if origin is tuple:
        # As it is before it is JSON, or after.
        items = value if isinstance(value, tuple) else _of(list, value, where)
        return tuple(_parse(inner[0], item, f"{where} {n}") for n, item in enumerate(items))
    if origin is dict:
        return {key: _parse(inner[1], item, f"{where}, {key}") for key, item in _of(dict, value, where).items()}
    if origin is Literal:
        if value not in inner:
            raise Misshapen(f"{where}: {_short(value)} instead of {', '.join(inner)}")
        return value
    return value if shape is Any else _of(shape, value, where)


def _parse_fields(shape: Any, value: Any, where: str) -> Any:
    _of(dict, value, where)
    found = {}
    for field, kind in _fields(shape):
        key = field.metadata.get("key", field.name)
        has_default = field.default is not MISSING or field.default_factory is not MISSING
        if value.get(key) is not None or (key in value and not has_default and _may_be_null(kind)):
            found[field.name] = _parse(kind, value[key], f"{where}, {key}")
        elif not has_default:
            raise Misshapen(f"{where} without {key}")
    return shape(**found)


def _may_be_null(kind: Any) -> bool:
    return kind is Any or type(None) in get_args(kind)


_hints = lru_cache(get_type_hints)


@lru_cache
def _fields(shape: Any) -> list[tuple[Any, Any]]:
    return [(field, _hints(shape)[field.name]) for field in fields(shape)]


def _of(kind: type, value: Any, where: str) -> Any:
    kinds: Any = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise Misshapen(f"{where}: {_short(value)} instead of {_NAMES.get(kind, kind.__name__)}")
    return value


_NAMES: dict[type, str] = {dict: "an object", list: "a list", str: "text", float: "a number"}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
