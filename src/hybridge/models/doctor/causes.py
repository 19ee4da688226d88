"""The codes of everything that the doctor and the server's checks can name, each with its meaning.

The codes are part of the wire: an error's JSON has one as ``cause``, the header ``hybridge-findings`` has those of
warnings.  They never change their meaning.  ``docs/doctor.md`` is generated from these rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from ...errors import RequestError

#: ``error``: the request is refused, or the result is worthless.  ``warning``: the result may still be meant.
#: ``either``: an error where it is certain, else a warning.
Severity = Literal["error", "warning", "either"]

#: What a code is about.
About = Literal["body", "shape", "scaling", "numbers", "pixels", "answer", "weights", "server", "file", "verify"]


@dataclass(frozen=True, slots=True)
class Cause:
    """One code.

    Attributes:
        code: The code.
        about: What it is about.
        severity: Whether it is an error.
        meaning: What was seen, as a sentence for the documentation.
        advice: What to do.
    """

    code: str
    about: About
    severity: Severity
    meaning: str
    advice: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause that was found.

    Attributes:
        code: One of :data:`CAUSES`.
        text: What was seen, in ASCII where it may become a header.
        hint: What to try.
        is_certain: Whether it is an error, for a cause that may be one.
    """

    code: str
    text: str
    hint: str | None = None
    is_certain: bool = False

    def __str__(self) -> str:
        return f"{self.text}. Try: {self.hint}" if self.hint else self.text

    @property
    def is_error(self) -> bool:
        """Whether the result is worthless."""
        severity = CAUSES[self.code].severity
        return severity == "error" or (severity == "either" and self.is_certain)

    def as_error(self, what: str, *, expected: object = None) -> RequestError:
        """Return the error that refuses a request because of it."""
        return RequestError(what, saw=self.text, expected=expected, hint=self.hint, cause=self.code)


def _read() -> Iterator[Cause]:
    text = resources.files(__package__).joinpath("causes.json").read_text(encoding="utf-8")
    for about, rows in json.loads(text).items():
        for row in rows:
            yield Cause(about=about, **row)


#: By code, in the order of the documentation; ``causes.json`` has them by what they are about.
CAUSES: dict[str, Cause] = {cause.code: cause for cause in _read()}
