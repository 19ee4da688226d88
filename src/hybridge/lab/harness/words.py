"""A text in both languages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

Language = Literal["en", "zh"]

LANGUAGES: tuple[Language, ...] = ("en", "zh")


class Text(NamedTuple):
    """A text in English and in Chinese."""

    en: str
    zh: str

    def into(self, language: Language) -> str:
        return self.en if language == "en" else self.zh

    def filled(self, **values: object) -> Text:
        """With values in place of ``{names}``; a value that is a Text itself goes in by language."""

        def filled(language: Language) -> str:
            own = {
                name: value.into(language) if isinstance(value, Text) else value for name, value in values.items()
            }
            return self.into(language).format_map(own)

        return Text(filled("en"), filled("zh"))


def same(text: str) -> Text:
    """A name or a number: read alike in both."""
    return Text(text, text)


def listed(texts: Iterable[Text], en: str = ", ", zh: str = "、") -> Text:
    """One after the other, with each language's own comma, or what is given, between."""
    every = list(texts)
    return Text(en.join(text.en for text in every), zh.join(text.zh for text in every))
