"""A server's answer, and the facts about its transfer."""

from __future__ import annotations

import io
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import BadAnswer
from ..protocol import Answer, FileAnswer, WireTensor

#: Milliseconds as servers write them, with at most nine digits before the point.
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{0,9})?")

if TYPE_CHECKING:
    from PIL.Image import Image


class ServerWarning(UserWarning):
    """The server answered, with a warning about the request."""


def warn_caller(text: str) -> None:
    """Issue a warning at the line outside this package that made the call."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(__package__):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, ServerWarning, stacklevel=level)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and the facts about its transfer.

    Attributes:
        answer: The answer in the protocol's type.
        headers: The response's headers; names in lower case.
        server: The server's address, without secrets.
        bytes_up: Size of the body that was sent.
        bytes_down: Size of the body that came back.
        seconds: Time of the attempt that succeeded, from sending to the last byte.
    """

    answer: Answer = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    server: str
    bytes_up: int
    bytes_down: int
    seconds: float

    @property
    def model(self) -> str | None:
        """The id of the model that answered."""
        return self.headers.get("hybridge-model")

    @property
    def inferred(self) -> str | None:
        """The facts that the server inferred, and their source."""
        return self.headers.get("hybridge-inferred")

    @property
    def warning(self) -> str | None:
        """The server's warning about the request; it has been issued as a :class:`ServerWarning`."""
        return self.headers.get("hybridge-warning")

    @property
    def timings_ms(self) -> dict[str, float]:
        """Milliseconds of each stage, from ``Server-Timing``."""
        return timings_ms(self.headers)

    def tensor(self) -> WireTensor:
        """The tensor of the answer.

        Raises:
            BadAnswer: when the answer is a file.
        """
        if isinstance(self.answer, FileAnswer):
            raise BadAnswer(f"{self.server} sent a file", saw=self.answer.media_type, expected="a tensor")
        return self.answer.tensor

    def file(self) -> bytes:
        """The bytes of the answer's file.

        Raises:
            BadAnswer: when the answer is a tensor.
        """
        if not isinstance(self.answer, FileAnswer):
            raise BadAnswer(f"{self.server} sent a tensor", saw=list(self.answer.tensor.shape), expected="a file")
        return self.answer.data

    def picture(self) -> Image:
        """The answer's picture, loaded; its ``format`` is the format of the file.

        Raises:
            BadAnswer: when the answer is not a picture, or is truncated.
        """
        from PIL import Image

        data = self.file()
        try:
            picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
            picture.load()
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise BadAnswer(
                f"{self.server} sent a picture that Pillow takes for a decompression bomb",
                saw=f"{len(data)} bytes",
                expected=f"at most {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels",
                hint='output="pixels", which no library limits',
            ) from None
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises a dozen types for damaged files, for example struct.error
            raise BadAnswer(
                f"{self.server} sent a picture that cannot be read",
                saw=f"{len(data)} bytes, {type(error).__name__}: {error}",
                hint="once more; it may have been cut short on the way",
            ) from None
        return picture


def timings_ms(headers: Mapping[str, str]) -> dict[str, float]:
    """Return the milliseconds of each stage from a response's ``Server-Timing``."""
    timings: dict[str, float] = {}
    for entry in headers.get("server-timing", "").split(","):
        name, *details = (part.strip() for part in entry.split(";"))
        for detail in details:
            key, _, value = detail.partition("=")
            if key == "dur" and _NUMBER.fullmatch(value):
                timings[name] = float(value)
    return timings
