"""What must not be shown: credentials that a server may echo, and characters that a terminal would obey."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

#: Of a secret that was cut off at the end of an excerpt, so many characters are still hidden.
_SHORTEST_PART = 6

#: Shorter values would be found everywhere.
_SHORTEST_SECRET = 3

#: Beyond that nobody reads an error message.
_LONGEST_TEXT = 2000


class Redactor:
    """Makes text from a server fit to be shown.

    Args:
        secrets: What is replaced by ``***``: each whole, its beginning where it was cut off, and its quoted forms.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms: set[str] = set()
        for secret in secrets:
            forms |= {secret, repr(secret)[1:-1], quote(secret, safe="")}
        self._secrets = sorted((form for form in forms if len(form) >= _SHORTEST_SECRET), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text without secrets and control characters, at most 2000 characters of it."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        for secret in self._secrets:
            for length in range(len(secret) - 1, _SHORTEST_PART - 1, -1):
                text = text.replace(secret[:length], "***")
        if not text.isprintable():
            text = "".join(character if character.isprintable() or character == "\n" else "�" for character in text)
        return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " …"
