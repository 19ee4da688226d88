"""The options of ``hybridge serve``: one for each field of the server's settings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


class ServeCommand(TyperCommand):
    """A command with an option for each setting.

    The settings are imported when the options are first needed, because the server's libraries are not installed
    with every verb.
    """

    _params: list[Any] | None = None

    @property
    def params(self) -> list[Any]:
        """One option for each setting, in the order of the settings."""
        if self._params is None:
            self._params = _parameters()
        return self._params

    @params.setter
    def params(self, params: list[Any]) -> None:
        """Ignore the parameters that typer found: the function has only the context."""

    def invoke(self, ctx: Any) -> Any:
        """Call the function without the options, which it reads from its context."""
        assert self.callback is not None  # noqa: S101 - it was made of a function
        return ctx.invoke(self.callback)


def _parameters() -> list[Any]:
    def of_settings() -> None:
        """A function with the signature below."""

    declared = list(_declared())
    of_settings.__signature__ = inspect.Signature(declared)  # type: ignore[attr-defined] # functions may have this attribute
    of_settings.__annotations__ = {parameter.name: parameter.annotation for parameter in declared}
    maker = typer.Typer(add_completion=False)
    maker.command()(of_settings)
    return typer.main.get_command(maker).params


def _declared() -> Iterator[inspect.Parameter]:
    """Yield the settings as typer declares options: parameters whose default is an option."""
    from ..server.flag import Flag
    from ..server.settings import Settings

    for name, field in Settings.model_fields.items():
        flag = next((one for one in field.metadata if isinstance(one, Flag)), Flag())
        kind = str if flag.is_text else _kind_of(field)
        option: Any
        if flag.is_positional:
            option = typer.Argument(None, help=field.description, show_default=False)
        else:
            option = typer.Option(
                None,
                flag.name or f"--{name.replace('_', '-')}",
                help=field.description,
                show_default=flag.default or _shown(field.default),
                rich_help_panel=flag.heading,
            )
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)


def _shown(default: object) -> str | bool:
    """Return a default's text in the help; False for none."""
    return False if default is None or default is False or default == () else str(default)


def _kind_of(field: FieldInfo) -> Any:
    """Return the type to which typer converts an option's text: a number, a switch, one text or several."""
    kinds = get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,)
    kind = next(kind for kind in kinds if kind is not NoneType)
    if get_origin(kind) is tuple:
        return list[str]
    return kind if kind in (bool, int, float) else str
