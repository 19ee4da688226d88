"""The page, the Markdown and the JSON, without a browser."""

from __future__ import annotations

import json
import re
import string
import subprocess
import sys
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from studies import PROMPTS, STACKS, WORKED, painted, written
from typer.testing import CliRunner

from hybridge.cli.application import application
from hybridge.lab.harness.words import Text, listed
from hybridge.lab.report import texts
from hybridge.lab.report.writing import write
from hybridge.lab.techniques import guide
from hybridge.lab.techniques.catalogue import TECHNIQUES

from .test_findings import BASELINE, measured

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'|`{{ 7 * 7 }}"


class Tags(HTMLParser):
    """Every start tag with its attributes, the text of the page, and whether all tags were closed."""

    VOID = frozenset({"meta", "link", "img", "input", "path", "circle", "rect", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())


def page_of(path: Path, folder: Path) -> str:
    write([path], folder)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_asks_nobody_for_anything(report: Path) -> None:
    page = Tags((report / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    for tag, attributes in page.tags:
        address = attributes.get("src") or (attributes.get("href") if tag == "link" else None) or "data:"
        assert address.startswith("data:"), (tag, address)
        if tag == "a":
            target = attributes["href"] or ""
            assert target.startswith(("#", "https://", "data:application/json")), target


def test_inner_links_lead_somewhere_and_names_are_given_once(report: Path) -> None:
    tags = Tags((report / "report.html").read_text(encoding="utf-8")).tags
    names = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(names) == len(set(names))
    targets = {a["href"][1:] for tag, a in tags if tag == "a" and (a["href"] or "").startswith("#")}  # type: ignore[index]
    assert targets <= set(names)


def test_every_configuration_has_a_line_and_every_prompt_a_sheet(report: Path) -> None:
    tags = Tags((report / "report.html").read_text(encoding="utf-8")).tags
    lines = [a for tag, a in tags if tag == "tbody" and a.get("class") == "line"]
    record = json.loads((report / "report.json").read_text(encoding="utf-8"))
    assert len(lines) == len(record["configurations"]) > 30
    assert {a.get("data-kind") for a in lines} == {"baseline", "single", "stack"}
    sheets = [a["data-prompt"] for tag, a in tags if tag == "section" and a.get("class") == "sheet"]
    assert sheets == [prompt["name"] for prompt in PROMPTS]


def test_what_could_not_be_judged_or_counted_says_why(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "Pictures were not judged by LPIPS: lpips is not installed." in page
    # Of two configurations, each time in its line and in what the filter looks through.
    assert page.count("it runs outside of eager torch") == 4


def test_equal_pictures_share_a_tile(report: Path) -> None:
    tags = Tags((report / "report.html").read_text(encoding="utf-8")).tags
    tiles = [json.loads(a["data-rows"] or "") for tag, a in tags if tag == "figure" and "data-rows" in a]
    first = [en for en, _ in tiles[0]]
    assert first[0] == "Baseline"
    assert {"Exact VAE", "Fused QKV", "Group offload to disk"} <= set(first)
    assert "DeepCache" not in first


def test_nothing_in_a_record_becomes_markup(tmp_path: Path) -> None:
    entry = measured("pab", [1.0], exact=1)
    entry |= {"configuration": HOSTILE, "reason": HOSTILE}
    entry["techniques"] = [{"name": HOSTILE, "outcome": "worked", "evidence": HOSTILE, "instead": HOSTILE}]
    path = written(tmp_path / "study.json", [BASELINE, entry], side=8)
    whole = json.loads(path.read_text(encoding="utf-8"))
    whole["arguments"]["prompts"][0] = {"name": HOSTILE, "prompt": HOSTILE, "seed": 1}
    whole["arguments"]["configurations"][1]["name"] = HOSTILE
    whole["environment"][HOSTILE] = HOSTILE
    whole["pipeline"]["name"] = HOSTILE
    whole["measurements"][1]["pictures"] = {HOSTILE: "missing.png"}
    path.write_text(json.dumps(whole), encoding="utf-8")
    text = page_of(path, tmp_path / "out")
    page = Tags(text)
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "alert(1)" not in text.replace("&lt;script&gt;alert(1)", "").replace("u003cscript\\u003ealert(1)", "")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "{{ 7 * 7 }}" in text
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown.replace("\\<script", "")


def test_scripts_other_than_the_page_s_own_may_not_run(report: Path) -> None:
    tags = Tags((report / "report.html").read_text(encoding="utf-8")).tags
    policy = next(a["content"] for tag, a in tags if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert re.search(r"script-src 'sha256-[\w+/]{43}='$", policy)


@pytest.mark.parametrize("damage", ["gone", "no picture", "outside", "too large", "another size"])
def test_pictures_that_cannot_be_had_are_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "study" / "study.json"
    entries = [
        one | {"pictures": {"portrait": f"pictures/{one['configuration']}/portrait.png"}}
        for one in (BASELINE, measured("deepcache", [1.0]))
    ]
    written(path, entries, side=32)
    for entry in entries:
        picture = path.parent / entry["pictures"]["portrait"]
        picture.parent.mkdir(parents=True)
        painted(1, 32).save(picture)
    if damage == "gone":
        picture.unlink()
    elif damage == "no picture":
        picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    elif damage == "outside":
        (tmp_path / "secret.png").write_bytes(picture.read_bytes())
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("pictures/deepcache/portrait.png", "../secret.png"), encoding="utf-8")
    else:
        from PIL import Image

        Image.new("1", (20_000, 20_000) if damage == "too large" else (16, 48)).save(picture)
    page = page_of(path, tmp_path / "out")
    # Only a picture that can be read is shown; one of another size has no difference.
    assert ("could not be read: DeepCache." in page) is (damage != "another size")


def test_a_record_of_nothing_but_unavailable_rows_is_a_page(tmp_path: Path) -> None:
    missing = {"name": "xformers", "outcome": "unavailable", "reason": "needs CUDA", "instead": "SDPA"}
    entry = {"configuration": "xformers", "outcome": "unavailable", "reason": "needs CUDA", "techniques": [missing]}
    text = page_of(written(tmp_path / "study.json", [entry], side=8), tmp_path / "out")
    assert Tags(text).open == []
    for said in ("Nothing could be measured here.", "No pictures were kept", "needs CUDA", "→ SDPA"):
        assert said in text, said


def test_a_record_of_the_vae_alone_is_a_page(tmp_path: Path) -> None:
    from .conftest import VAE

    text = page_of(VAE, tmp_path)
    assert "diffusers, as it comes" in text
    assert 'id="techniques"' not in text
    assert "精确时间（秒）" in text


def test_the_guide_stands_beside_and_never_within(report: Path) -> None:
    numbers = json.loads((report / "report.json").read_text(encoding="utf-8"))
    assert numbers["guide"]["figures"]["deepcache"][0]["value"] == 0.5
    assert "RTX 3090" in numbers["guide"]["condition"]
    assert not any("3090" in json.dumps(row) for row in numbers["configurations"])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_markdown_has_it_all_in_its_language(language: str, record: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        application, ["lab", "report", str(record), "--out", str(tmp_path), "--language", language]
    )
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    position = {"en": 0, "zh": 1}[language]
    for name in (*WORKED, "onediff"):
        assert texts.TITLES[name][position] in text
    for name in STACKS:
        assert f"| {name} |" in text
    widths = {line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("| ")}
    assert len(widths) == 2  # two tables: ours and the guide's
    assert f'<html lang="{"en" if language == "en" else "zh-Hans"}">' in (tmp_path / "report.html").read_text(
        "utf-8"
    )


def test_unknown_languages_are_refused(record: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(application, ["lab", "report", str(record), "--language", "fr"])
    assert "unknown language" in str(result.exception)


def test_what_was_written_before_stays_until_the_new_one_is_whole(record: Path, tmp_path: Path) -> None:
    write([record], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]


def every_text() -> dict[str, Text]:
    found = {
        f"{table}.{key}": text
        for table in ("TITLES", "OUTCOMES", "MEASURES", "QUANTITIES", "UI", "SUMMARY", "ENVIRONMENT", "TABLES")
        for key, text in getattr(texts, table).items()
    }
    for name, figures in guide.FIGURES.items():
        found |= {f"guide.{name}.{n}": figure.when for n, figure in enumerate(figures) if figure.when}
    found |= {f"recipe.{n}": recipe.title for n, recipe in enumerate(guide.RECIPES)}
    return found | {f"remark.{n}": recipe.remark for n, recipe in enumerate(guide.RECIPES) if recipe.remark}


def fields(text: str) -> set[str | None]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize(
    ("name", "text"), every_text().items(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_both_languages_say_everything(name: str, text: Text) -> None:
    assert text.en.strip()
    assert text.zh.strip()
    assert fields(text.en) == fields(text.zh)
    assert not re.search("[\u3400-\u9fff]", text.en)
    if name.startswith(("UI.", "OUTCOMES.", "MEASURES.")) and text.en not in ("SSIM", "LPIPS"):
        # Characters, or at least Chinese punctuation.
        assert re.search("[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]", text.zh), text


def test_every_technique_has_a_title_in_both_languages_and_its_claim_in_chinese() -> None:
    assert {name: row.title for name, row in TECHNIQUES.items()} == {
        name: texts.TITLES[name].en for name in TECHNIQUES
    }
    assert [row.name for row in TECHNIQUES.values() if not re.search("[\u3400-\u9fff]", row.claim_zh)] == []


def test_the_guide_speaks_of_techniques_that_there_are() -> None:
    named = {*guide.FIGURES, *(name for recipe in guide.RECIPES for name in recipe.techniques)}
    assert named <= texts.TITLES.keys()


def test_the_columns_of_the_benchmarks_are_translated(report: Path) -> None:
    from hybridge.lab.harness.record import read
    from hybridge.lab.vae_bench import report as vae

    from .conftest import VAE

    for table in vae.tables(read(VAE, "vae")):
        assert set(table.columns) <= texts.TABLES.keys()


def test_lists_have_their_language_s_comma() -> None:
    assert listed([Text("a", "甲"), Text("b", "乙")]) == Text("a, b", "甲、乙")


@pytest.mark.parametrize(
    "path",
    ["templates/page.html.jinja", "templates/page.css", "templates/page.js", "locale/en.json", "locale/zh.json"],
)
def test_what_the_page_is_made_of_is_in_the_package(path: str) -> None:
    assert resources.files("hybridge.lab.report").joinpath(*path.split("/")).is_file()


def test_both_languages_have_the_same_keys() -> None:
    folder = resources.files("hybridge.lab.report").joinpath("locale")
    en, zh = (json.loads(folder.joinpath(f"{name}.json").read_text(encoding="utf-8")) for name in ("en", "zh"))
    assert {(table, key) for table in en for key in en[table]} == {
        (table, key) for table in zh for key in zh[table]
    }


def test_a_report_loads_no_torch(record: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from hybridge.lab.report.writing import write;"
        " write([pathlib.Path(sys.argv[1])], pathlib.Path(sys.argv[2])); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(record), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_the_verb_s_help_loads_no_torch() -> None:
    code = "import sys; import hybridge.cli.lab_report; print('torch' in sys.modules, 'jinja2' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "False"]


def numbers_of(path: Path, folder: Path) -> dict[str, Any]:
    write([path], folder)
    whole: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return whole


def test_the_json_keeps_the_records_as_they_were(record: Path, tmp_path: Path) -> None:
    numbers = numbers_of(record, tmp_path)
    assert numbers["records"] == [json.loads(record.read_text(encoding="utf-8"))]
    assert numbers["pareto"]["counted"][0] == "fastest"
