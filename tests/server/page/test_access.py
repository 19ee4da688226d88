"""The page for everybody: every width, both colours, keyboard, screen reader, every way to give a file."""

from __future__ import annotations

import json
from pathlib import Path

import browser
import pytest

pytestmark = pytest.mark.skipif(browser.installed() is None, reason="no browser to click with")

#: Elements with text of their own whose contrast with what lies behind them, by WCAG's formula, is below 4.5.
PALE = """(() => {
  const parts = (value) => value.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((one) => one / 255)
    .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
    .reduce((sum, one, index) => sum + one * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parts(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
  };
  const written = [...document.querySelectorAll('body *')].filter((one) => one.checkVisibility()
    && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return written.map((one) => {
    const [ink, paper] = [light(parts(getComputedStyle(one).color)), light(behind(one))];
    return [one.tagName, one.className, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)];
  }).filter(([, , contrast]) => contrast < 4.5);
})()"""

#: Hands over a picture or a file of text in an event, as a hand or a clipboard would.
GIVE = """(async (kind, name, type, target) => {
  const canvas = Object.assign(document.createElement('canvas'), { width: 64, height: 64 });
  const blob = await new Promise((done) => canvas.toBlob(done));
  const transfer = new DataTransfer();
  transfer.items.add(new File([type.startsWith('image/') ? blob : 'nothing'], name, { type }));
  const about = { bubbles: true, cancelable: true };
  const event = kind === 'paste'
    ? new ClipboardEvent('paste', { ...about, clipboardData: transfer })
    : new DragEvent(kind, { ...about, dataTransfer: transfer });
  document.querySelector(target).dispatchEvent(event);
  return event.defaultPrevented;
})"""


def give(page: browser.Page, kind: str, name: str, media_type: str, target: str = "body") -> bool:
    """Whether the browser was kept from doing with it what it does by itself, such as leaving the page."""
    prevented: bool = page.ask(
        f"{GIVE}({json.dumps(kind)}, {json.dumps(name)}, '{media_type}', {json.dumps(target)})"
    )
    return prevented


def fill(page: browser.Page, photograph: Path) -> None:
    """All that the page can show at once."""
    page.select("#photo [name=size]", "256")
    page.choose("#photo input[type=file]", photograph)
    page.until("document.querySelector('#photo .stage')")
    page.ask("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.click("#prompt textarea")
    page.type("rain")
    page.click("#prompt .main")
    page.until("document.querySelector('#prompt table')")
    page.ask("document.querySelectorAll('.work').forEach((one) => { one.hidden = false; })")
    page.ask("document.querySelector('#latents .failure').hidden = false")
    page.ask("document.querySelector('#key-form').hidden = false")
    page.ask("document.querySelector('#keys').hidden = false")
    page.ask("document.querySelector('.chosen').hidden = false")


def test_no_width_scrolls_sideways_and_all_text_can_be_read(page: browser.Page, photograph: Path) -> None:
    fill(page, photograph)
    for language in ("zh", "en"):
        page.ask(f"document.querySelector('[data-language={language}]').click()")
        for width, dark in ((320, False), (390, True), (800, False), (1280, True)):
            page.look(width, dark=dark)
            assert page.ask("document.documentElement.scrollWidth") == width, (language, width)
            assert page.ask(PALE) == [], (language, dark)


def test_controls_and_pictures_have_names(page: browser.Page, photograph: Path) -> None:
    fill(page, photograph)
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = (
        "button",
        "progressbar",
        "slider",
        "link",
        "combobox",
        "textbox",
        "radio",
        "checkbox",
        "spinbutton",
        "image",
    )
    unnamed = [
        (node["role"]["value"], node.get("properties"))
        for node in nodes
        if node.get("role", {}).get("value") in roles and not node.get("ignored") and not node["name"].get("value")
    ]
    assert unnamed == []
    page.call("Accessibility.disable")


def test_the_language_changes_everywhere(page: browser.Page, photograph: Path) -> None:
    fill(page, photograph)
    page.click("[data-language=zh]")
    assert page.ask("document.documentElement.lang") == "zh-Hans"
    shown = page.ask("[...document.querySelectorAll('[data-text]')].map((one) => one.textContent).join('\\n')")
    english = page.ask("import('./page/texts/en.js').then((texts) => Object.values(texts.default))")
    chinese = page.ask("import('./page/texts/zh.js').then((texts) => Object.values(texts.default))")
    left = [one for one in english if "{" not in one and len(one) > 6 and one in shown.split("\n")]
    assert [one for one in left if one not in chinese] == []
    assert page.ask("document.querySelector('#photo .stage input').ariaLabel") == "显示的原图所占百分比"
    assert page.ask("document.querySelector('#prompt textarea').placeholder") == "暴风雨中的灯塔"
    page.visit(page.ask("location.href"))
    page.until("document.querySelector('.models li')")
    assert page.text("h1") == "在这台服务器上编码与解码"
    page.click("[data-theme-choice=dark]")
    dark = "getComputedStyle(document.documentElement).backgroundColor"
    assert page.ask(dark) == "rgb(21, 21, 20)"
    page.click("[data-theme-choice=light]")
    assert page.ask(dark) == "rgb(252, 251, 249)"


def test_the_browsers_languages_come_first(page: browser.Page, address: str) -> None:
    page.call("Emulation.setUserAgentOverride", userAgent="Chromium", acceptLanguage="fr-CH,zh-CN,en")
    page.visit(f"{address}/")
    page.until("document.querySelector('.models li')")
    page.call("Emulation.setUserAgentOverride", userAgent="Chromium", acceptLanguage="en-GB")
    assert page.text("h1") == "在这台服务器上编码与解码"


def test_a_keyboard_is_enough(page: browser.Page, photograph: Path) -> None:
    page.press("Tab")
    assert page.ask("document.activeElement.className") == "skip"
    page.press("Enter")
    assert page.ask("document.activeElement.id") == "main"
    reached = []
    for _ in range(30):
        page.press("Tab")
        reached.append(
            page.ask("document.activeElement.closest('section')?.id + ' ' + document.activeElement.type")
        )
        outline = (
            "getComputedStyle(document.activeElement.closest('.drop label') ?? document.activeElement).outlineStyle"
        )
        assert page.ask(outline) != "none", reached[-1]
        if reached[-1] == "prompt textarea":
            break
    assert "models undefined" in reached  # the reasons for a state
    assert {"photo select-one", "photo file", "latents file", "prompt textarea"} <= set(reached)


def test_files_may_be_dropped_and_pasted(page: browser.Page) -> None:
    assert give(page, "dragover", "a.png", "image/png")
    assert give(page, "drop", "a.png", "image/png", "#models")
    page.until("document.querySelector('#photo .stage')?.querySelector('canvas').width === 64")
    assert give(page, "paste", "pasted.png", "image/png")
    page.until("document.querySelector('#photo .file').innerText === 'pasted.png'")
    page.until("document.querySelector('#photo .work').hidden")
    assert give(page, "drop", "a.safetensors", "application/octet-stream", "#photo")
    page.until("document.querySelector('#latents > .failure').checkVisibility()")
    assert "damaged" in page.text("#latents > .failure")
    assert give(page, "drop", "a.pt", "", "#models")
    page.until("document.querySelector('#latents > .failure').innerText.includes('hybridge decode')")
    assert not page.ask("document.body.classList.contains('dragging')")


def test_nothing_moves_once_the_page_is_there(page: browser.Page, address: str) -> None:
    page.visit(f"{address}/")
    page.until("document.querySelector('.models li')")
    moved = """new Promise((done) => {
      let moved = 0;
      new PerformanceObserver((list) => { for (const entry of list.getEntries()) moved += entry.value; })
        .observe({ type: 'layout-shift', buffered: true });
      requestAnimationFrame(() => requestAnimationFrame(() => done(moved)));
    })"""
    assert page.ask(moved) < 0.05


def test_a_browser_that_forbids_storage(page: browser.Page, address: str) -> None:
    forbidden = "{ get() { throw new DOMException('', 'SecurityError'); } }"
    script = page.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source=f"Object.defineProperty(window, 'sessionStorage', {forbidden})",
    )["identifier"]
    page.visit(f"{address}/")
    page.until("document.querySelector('.models li')")
    page.click("[data-language=zh]")
    assert page.text("h1") == "在这台服务器上编码与解码"
    page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


def test_colours_of_the_system_and_more_contrast(page: browser.Page) -> None:
    chosen = "document.querySelector('[data-language=en]')"
    other = "document.querySelector('[data-language=zh]')"
    page.call("Emulation.setEmulatedMedia", features=[{"name": "forced-colors", "value": "active"}])
    background = "getComputedStyle(%s).backgroundColor"
    marked = page.ask(
        "(() => { const one = document.createElement('i'); one.style.background = 'Highlight';"
        " document.body.append(one); const found = getComputedStyle(one).backgroundColor;"
        " one.remove(); return found; })()"
    )
    assert page.ask(background % chosen) == marked != page.ask(background % other)
    assert page.ask("getComputedStyle(document.querySelector('#photo progress')).borderTopStyle") == "solid"
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-contrast", "value": "more"}])
    colour = "getComputedStyle(document.querySelector('%s')).color"
    assert page.ask(colour % ".lead") == page.ask(colour % "h1")
    page.look(1280)
