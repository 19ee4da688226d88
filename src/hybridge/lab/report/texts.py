"""Every word of the page, in English and Chinese.  What a record says itself (evidence, reasons) stays as it is.

The words are in ``locale/en.json`` and ``locale/zh.json``, which have the same keys; titles and claims of
techniques are in the catalogue.
"""

from __future__ import annotations

import json
from importlib import resources

from ..harness.words import LANGUAGES, Text, same
from ..techniques.facts import FACTS

_FOLDER = resources.files(__package__).joinpath("locale")
_EN, _ZH = (json.loads(_FOLDER.joinpath(f"{each}.json").read_text(encoding="utf-8")) for each in LANGUAGES)


def _table(name: str) -> dict[str, Text]:
    return {key: Text(text, _ZH[name][key]) for key, text in _EN[name].items()}


OUTCOMES = _table("outcomes")
MEASURES = _table("measures")
#: Of the guide's figures.
QUANTITIES = _table("quantities")
#: Of the page's furniture.
UI = _table("ui")
SUMMARY = _table("summary")
ENVIRONMENT = _table("environment")
#: Of the tables of ``hybridge bench``, by what stands in them in English.
TABLES = _table("tables")

#: By technique; what a product calls itself is its title in both languages.
TITLES = {"baseline": Text("Baseline", "基线")} | {
    facts.name: Text(facts.title, facts.title_zh) for facts in FACTS.values()
}


def technique_title(name: str) -> Text:
    """Of a technique; its own name where the catalogue has none."""
    return TITLES.get(name, same(name))


def table_text(english: str) -> Text:
    """Of what stands in a table of ``hybridge bench``; itself where there is no other."""
    return TABLES.get(english, same(english))
