"""The page as a reader has it: a real Chromium, a mouse and a keyboard."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest

pytestmark = pytest.mark.skipif(
    browser.installed() is None, reason=f"no browser to click with: none of {', '.join(browser.NAMES)} is installed"
)

LINES = "[...document.querySelectorAll('tbody.line')].filter((line) => line.checkVisibility())"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with browser.browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(running: browser.Page, report: Path) -> Iterator[browser.Page]:
    """The report, newly opened at a desk; whatever a test does there, nothing may be fetched or go wrong."""
    running.requests.clear()
    running.complaints.clear()
    running.look(1280)
    running.open(report / "report.html")
    yield running
    assert running.complaints == []
    fetched = [address for address in running.requests if not address.startswith(("data:", "blob:"))]
    assert set(fetched) == {(report / "report.html").as_uri()}


def column(page: browser.Page, name: str) -> list[Any]:
    """Values of a column, top to bottom, of the lines that are seen."""
    cell = f"line.querySelector('[data-column={name}]')"
    value: list[Any] = page.ask(f"{LINES}.map((line) => {cell}?.dataset.value ?? null)")
    return [None if one is None else float(one) for one in value]


def titles(page: browser.Page) -> list[str]:
    shown: list[str] = page.ask(f"{LINES}.map((line) => line.querySelector('.title').innerText)")
    return shown


def test_a_column_sorts_up_and_down_and_back(page: browser.Page) -> None:
    before = column(page, "seconds")
    head = "th[data-column=seconds]"
    page.click(f"{head} button")
    shown = column(page, "seconds")
    known = [value for value in shown if value is not None]
    assert known == sorted(known)
    assert shown[len(known) :] == [None] * (len(before) - len(known))
    assert page.ask(f"document.querySelector('{head}').ariaSort") == "ascending"
    page.click(f"{head} button")
    shown = column(page, "seconds")
    assert shown[: len(known)] == sorted(known, reverse=True)
    assert shown[-1] is None
    page.click(f"{head} button")
    assert column(page, "seconds") == before


def test_sorting_needs_no_mouse(page: browser.Page) -> None:
    page.ask("document.querySelector('th[data-column=memory] button').focus()")
    page.press("Enter")
    known = [value for value in column(page, "memory") if value is not None]
    assert known == sorted(known)


def test_filters_by_text_kind_and_outcome(page: browser.Page) -> None:
    whole = len(titles(page))
    page.click("input[name=search]")
    page.type("cache")
    assert set(titles(page)) == {"DeepCache", "First Block Cache", "fastest"}
    assert page.ask("document.querySelector('.filters output').innerText") == f"3 / {whole} shown"
    page.ask("document.querySelector('form.filters').reset()")
    page.click("input[value=stack] + span")
    assert set(titles(page)) == {"Baseline", "fastest", "smallest", "onediff-guide"}
    page.click("input[value=all] + span")
    page.click("input[name=outcome][value='no effect'] + span")
    assert len(titles(page)) == whole - 4
    page.click("input[name=search]")
    page.type("no such thing")
    assert titles(page) == []
    assert page.ask("document.querySelector('.none-shown').checkVisibility()")


def test_a_point_leads_to_its_line_even_when_that_is_filtered_out(page: browser.Page) -> None:
    page.click("input[name=search]")
    page.type("xformers")
    assert titles(page) == ["xFormers"]
    page.ask(
        "document.querySelector('svg.wide a.on-front').dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    page.ask("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    target = page.ask("document.querySelector('tbody.line:target .title').innerText")
    assert target in titles(page)


def test_the_language_changes_everywhere(page: browser.Page) -> None:
    assert "In short" in page.ask("document.body.innerText")
    page.click("button[data-language=zh]")
    text = page.ask("document.body.innerText")
    assert "摘要" in text
    assert "In short" not in text
    assert page.ask("document.documentElement.lang") == "zh-Hans"
    assert page.ask("document.title") == "这台机器上，哪些优化值得用"
    assert page.ask("document.querySelector('input[name=search]').placeholder") == "名称或文字"
    assert page.ask("document.querySelector('input[name=edge]').ariaLabel").startswith("基线")
    assert page.ask("document.querySelector('select[name=with]').selectedOptions[0].text") == "BF16 半精度"
    page.click("button[data-language=en]")
    assert "摘要" not in page.ask("document.body.innerText")


def test_the_slider_by_mouse_and_by_keys(page: browser.Page) -> None:
    edge = "document.querySelector('.stage .edge').offsetLeft / document.querySelector('.stage').offsetWidth"
    assert page.ask(edge) == pytest.approx(0.5, abs=0.01)
    page.click("input[name=edge]", x=0.25)
    assert page.ask(edge) == pytest.approx(0.25, abs=0.04)
    before = page.ask("Number(document.querySelector('input[name=edge]').value)")
    for _ in range(3):
        page.press("ArrowRight")
    assert page.ask("Number(document.querySelector('input[name=edge]').value)") == before + 3
    page.press("End")
    assert page.ask(edge) == pytest.approx(1.0, abs=0.01)
    clip = page.ask("getComputedStyle(document.querySelector('.stage .right')).clipPath")
    assert clip == "inset(0px 0px 0px 100%)"


def test_a_tile_is_compared_and_its_difference_shown(page: browser.Page) -> None:
    tile = ".sheet[data-prompt=macro] .tile:nth-child(4)"
    page.click(f"{tile} .frame")
    chosen = page.ask(f"document.querySelector('{tile} figcaption .title').innerText")
    assert page.ask("document.querySelector('select[name=prompt]').value") == "macro"
    assert page.ask("document.querySelector('.of-right').innerText") == chosen
    sources = "(s) => document.querySelector(s).src"
    same = f"(({sources})('.stage .right') === ({sources})('{tile} .picture'))"
    assert page.ask(same)
    assert page.ask(f"({sources})('.stage .left') !== ({sources})('.stage .right')")
    page.click("input[value=differences] + span")
    assert page.ask("document.querySelector('.stage .difference').checkVisibility()")
    assert page.ask(f"({sources})('.stage .difference') === ({sources})('{tile} .difference')")
    assert "difference ×" in page.ask("document.querySelector('.of-difference').innerText")
    assert page.ask(f"getComputedStyle(document.querySelector('{tile} .difference')).visibility") == "visible"


def test_the_other_memory_has_a_plot_of_its_own(page: browser.Page) -> None:
    plots = "[...document.querySelectorAll('svg.plot')].filter((plot) => plot.checkVisibility())"
    visible = f"{plots}.map((plot) => plot.dataset.measure)"
    assert page.ask(visible) == ["counted"]
    page.click("input[name=measure][value=resident] + span")
    assert page.ask(visible) == ["resident"]


#: Contrast of what text is written in, by WCAG's formula, against the paper.
CONTRASTS = """(() => {
  const light = (value) => {
    const [r, g, b] = value.match(/[\\d.]+/g).map((part) => Number(part) / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.documentElement).backgroundColor);
  return ['h1', '.where', 'main a', '.detail td'].map((selector) => {
    const ink = light(getComputedStyle(document.querySelector(selector)).color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  });
})()"""


def test_no_width_scrolls_sideways_and_all_text_can_be_read(page: browser.Page) -> None:
    for language in ("en", "zh"):
        page.ask(f"document.querySelector('[data-language={language}]').click()")
        for width, dark in ((320, False), (390, True), (800, False), (1280, True)):
            page.look(width, dark=dark)
            assert page.ask("document.documentElement.scrollWidth") == width, (language, width)
            assert min(page.ask(CONTRASTS)) >= 4.5, (language, dark)


def test_nothing_moves_once_the_page_is_there(running: browser.Page, report: Path) -> None:
    running.look(1280)
    running.open(report / "report.html")
    shift = running.ask(
        """new Promise((done) => {
          let moved = 0;
          new PerformanceObserver((list) => { for (const entry of list.getEntries()) moved += entry.value; })
            .observe({ type: 'layout-shift', buffered: true });
          requestAnimationFrame(() => requestAnimationFrame(() => done(moved)));
        })"""
    )
    assert shift < 0.05


def test_pictures_have_words_and_controls_have_names(page: browser.Page) -> None:
    page.call("Accessibility.enable")
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    unnamed = [
        node["role"]["value"]
        for node in tree
        if node.get("role", {}).get("value")
        in ("button", "slider", "link", "combobox", "searchbox", "radio", "checkbox")
        and not node.get("ignored")
        and not node.get("name", {}).get("value")
    ]
    assert unnamed == []


def test_the_raw_record_can_be_downloaded(page: browser.Page, record: Path) -> None:
    link = f"document.querySelector('a[download=\"{record.name}\"]').href"
    encoded = page.ask(link)
    kind, _, data = encoded.partition(",")
    assert kind == "data:application/json;base64"
    assert json.loads(base64.b64decode(data)) == json.loads(record.read_text(encoding="utf-8"))


def test_it_prints(page: browser.Page) -> None:
    assert page.printed().startswith(b"%PDF-")
