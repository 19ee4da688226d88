"""Every setting of the server: a flag of ``hybridge serve``, or a variable ``HYBRIDGE_…``."""

from __future__ import annotations

import difflib
import os
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ..errors import HybridgeError
from .limits import MIB, Limits

_PREFIX = "HYBRIDGE_"

#: Read by other verbs than serve.
_OTHER_VARIABLES = frozenset({"HYBRIDGE_KEY"})

#: Pillow refuses larger pictures as decompression bombs.
_MOST_PIXELS = 2 * 89_478_485


class Settings(BaseSettings):
    """Frozen; what is not given comes from the environment, then from the defaults here."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid")

    models: Annotated[tuple[str, ...], NoDecode] = Field(default=("starter",), min_length=1)
    default_model: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    exactness: Literal["bitwise", "rounding"] = "rounding"
    queue_limit: int = Field(default=64, ge=1)
    max_body_mib: int = Field(default=256, ge=1)
    max_pixels: int = Field(default=2048 * 2048, ge=64, le=_MOST_PIXELS)
    max_batch: int = Field(default=32, ge=1)
    cors: Annotated[tuple[str, ...], NoDecode] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("models", "cors", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """A variable holds several values with commas between them."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_default(self) -> Settings:
        names = [argument.partition("=")[0] for argument in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"two models of one name in {', '.join(names)}")
        if self.default_model is not None and self.default_model not in names:
            raise ValueError(f"the default model {self.default_model} is not among {', '.join(names)}")
        return self

    @property
    def limits(self) -> Limits:
        """How much a stranger may ask for."""
        return Limits(self.max_body_mib * MIB, self.max_pixels, self.max_batch)


def refuse_unknown_variables() -> None:
    """Raises for a ``HYBRIDGE_…`` variable that no setting reads, and names the nearest that one does."""
    known = {_PREFIX + name.upper() for name in Settings.model_fields} | _OTHER_VARIABLES
    for name in sorted(os.environ):
        if name.startswith(_PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise HybridgeError(
                f"unknown variable {name}", expected=", ".join(sorted(known)), hint=near[0] if near else None
            )
