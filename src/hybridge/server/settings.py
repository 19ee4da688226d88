"""Every setting of the server: a flag of ``hybridge serve``, or a variable ``HYBRIDGE_…``."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ..errors import HybridgeError
from .ledger import LedgerLimits
from .limits import MIB, Limits
from .queue import LineLimits

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
    # The waiting line, memory, long work.
    queue_work_s: float = Field(default=300, gt=0)
    queue_mib: int = Field(default=1024, ge=1)
    deadline_s: float | None = Field(default=None, gt=0)
    memory: int | None = Field(default=None, ge=1)
    preload: bool = False
    spool: Path | None = None
    spool_gib: float = Field(default=8, gt=0)
    jobs_limit: int = Field(default=1000, ge=1)
    jobs_mib: int = Field(default=1024, ge=1)
    job_ttl_s: float = Field(default=3600, gt=0)

    @field_validator("models", "cors", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """A variable holds several values with commas between them."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("memory", mode="before")
    @classmethod
    def _read_bytes(cls, value: object) -> object:
        """Bytes, or a number with KiB, MiB or GiB behind it."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG])iB", value) if isinstance(value, str) else None
        if match:
            return int(float(match[1]) * 1024 ** (1 + "KMG".index(match[2])))
        if isinstance(value, str) and not value.isdecimal():
            raise ValueError("a number of bytes, such as 8GiB")
        return value

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

    @property
    def line_limits(self) -> LineLimits:
        """How much may wait for the device."""
        return LineLimits(self.queue_limit, self.queue_work_s, self.queue_mib * MIB)

    @property
    def ledger_limits(self) -> LedgerLimits:
        """How much long work is kept: on disk with a spool, else in memory."""
        kept_bytes = self.jobs_mib * MIB if self.spool is None else int(self.spool_gib * 1024 * MIB)
        return LedgerLimits(self.jobs_limit, kept_bytes, self.job_ttl_s)


def refuse_unknown_variables() -> None:
    """Raises for a ``HYBRIDGE_…`` variable that no setting reads, and names the nearest that one does."""
    known = {_PREFIX + name.upper() for name in Settings.model_fields} | _OTHER_VARIABLES
    for name in sorted(os.environ):
        if name.startswith(_PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise HybridgeError(
                f"unknown variable {name}", expected=", ".join(sorted(known)), hint=near[0] if near else None
            )
