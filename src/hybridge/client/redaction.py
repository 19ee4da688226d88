"""Remove credentials that a server may echo, and control characters that affect terminals, from texts."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

#: Shortest beginning of a secret that is hidden at the end of a truncated text, in characters.
_SHORTEST_PART = 6

#: Shorter secrets are not hidden, because they would match everywhere.
_SHORTEST_SECRET = 3

#: Most characters of a server's text that are shown.
_LONGEST_TEXT = 2000


class Redactor:
    """Makes a server's text safe to show.

    Args:
        secrets: The texts to replace by ``***``, also in quoted forms and if truncated at the end of a text.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms: set[str] = set()
        for secret in secrets:
            forms |= {secret, repr(secret)[1:-1], quote(secret, safe="")}
        self._secrets = sorted((form for form in forms if len(form) >= _SHORTEST_SECRET), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the text without secrets and control characters, cut to 2000 characters."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        for secret in self._secrets:
            for length in range(len(secret) - 1, _SHORTEST_PART - 1, -1):
                text = text.replace(secret[:length], "***")
        if not text.isprintable():
            text = "".join(character if character.isprintable() or character == "\n" else "�" for character in text)
        return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " …"
