"use strict";
// The page reads well without this; with it, the table sorts, the language changes and pictures are compared.

const every = (selector, within = document) => [...within.querySelectorAll(selector)];
const first = (selector, within = document) => within.querySelector(selector);

// --- language ---------------------------------------------------------------------------------------------------
const language = () => (document.documentElement.lang.startsWith("zh") ? "zh" : "en");

function speak(chosen) {
  document.documentElement.lang = chosen === "zh" ? "zh-Hans" : "en";
  for (const button of every("[data-language]")) {
    button.setAttribute("aria-pressed", String(button.dataset.language === chosen));
  }
  for (const element of every("[data-attribute]")) {
    const text = element.dataset[chosen];
    if (element.dataset.attribute === "text") element.textContent = text;
    else element.setAttribute(element.dataset.attribute, text);
  }
}
for (const button of every("[data-language]")) {
  button.addEventListener("click", () => {
    speak(button.dataset.language);
    compare.caption?.();
  });
}

// --- table ------------------------------------------------------------------------------------------------------
const table = first("table.lines");
const compare = {};

if (table) {
  const lines = every("tbody.line", table);
  const nothing = first(".none-shown", table);
  const filters = first("form.filters");
  filters.hidden = false;

  const valueOf = (line, column) => {
    const cell = first(`[data-column="${column}"]`, line);
    if (column === "name") return line.dataset.search;
    return cell?.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  const order = (one, other) => {
    if (one === null || other === null) return (one === null) - (other === null) || 0;
    return typeof one === "string" ? one.localeCompare(other) : one - other;
  };
  const sort = (column, direction) => {
    const sorted = [...lines].sort((a, b) => {
      const before = Number(a.dataset.index) - Number(b.dataset.index);
      if (direction === "none") return before;
      const [one, other] = [valueOf(a, column), valueOf(b, column)];
      // What was not measured comes last, whatever the direction.
      const sign = direction === "descending" && one !== null && other !== null ? -1 : 1;
      return sign * order(one, other) || before;
    });
    for (const line of sorted) table.insertBefore(line, nothing);
    for (const head of every("thead th", table)) {
      head.setAttribute("aria-sort", head.dataset.column === column ? direction : "none");
    }
  };
  const next = { none: "ascending", ascending: "descending", descending: "none" };
  for (const head of every("thead th", table)) {
    first("button", head).addEventListener("click", () => {
      sort(head.dataset.column, next[head.getAttribute("aria-sort")]);
    });
  }

  const filter = () => {
    const asked = new FormData(filters);
    const words = asked.get("search").toLowerCase().split(/\s+/).filter(Boolean);
    const outcomes = new Set(asked.getAll("outcome"));
    let shown = 0;
    for (const line of lines) {
      const { kind, outcome, search } = line.dataset;
      const passes =
        outcomes.has(outcome) &&
        (asked.get("kind") === "all" || asked.get("kind") === kind || kind === "baseline") &&
        words.every((word) => search.includes(word));
      line.hidden = !passes;
      shown += passes;
    }
    nothing.hidden = shown > 0;
    first("output .number", filters).textContent = shown;
  };
  filters.addEventListener("input", filter);
  filters.addEventListener("submit", (event) => event.preventDefault());
  // A link from the plot must lead somewhere, even where the filter hid its line.
  addEventListener("hashchange", () => {
    const line = document.getElementById(location.hash.slice(1));
    if (line?.matches("tbody.line") && line.hidden) {
      filters.reset();
      filter();
      line.scrollIntoView();
    }
  });
}

// --- plot -------------------------------------------------------------------------------------------------------
const measures = first("fieldset.measures");
if (measures) {
  measures.hidden = false;
  measures.addEventListener("input", (event) => {
    for (const figure of every("figure.measure")) figure.hidden = figure.dataset.measure !== event.target.value;
  });
}

// --- pictures ---------------------------------------------------------------------------------------------------
const comparing = first("form.comparing");
if (comparing) {
  comparing.hidden = false;
  const section = first("#pictures");
  const stage = first(".stage", comparing);
  const { prompt, with: other, edge } = comparing.elements;
  const sheets = new Map(every(".sheet", section).map((sheet) => [sheet.dataset.prompt, sheet]));
  const tilesOf = (name) => every(".tile", sheets.get(name));
  const titles = (tile) => JSON.parse(tile.dataset.rows);
  const picture = (tile, kind) => first(`img.${kind}`, tile);
  let chosen = null;

  const fill = (wanted) => {
    const tiles = tilesOf(prompt.value);
    const options = tiles.flatMap((tile, index) =>
      titles(tile).map(([en, zh], position) => ({ index, en, zh, isBaseline: "baseline" in tile.dataset && !position })),
    );
    other.replaceChildren(
      ...options
        .filter((option) => !option.isBaseline)
        .map(({ index, en, zh }) => {
          const option = new Option(language() === "zh" ? zh : en, index);
          Object.assign(option.dataset, { attribute: "text", en, zh });
          return option;
        }),
    );
    const same = [...other.options].find((option) => option.dataset.en === wanted);
    // At first something that differs: two equal pictures teach nobody what the slider is for.
    const differing = [...other.options].find((option) => picture(tiles[option.value], "difference"));
    const selected = same ?? differing;
    if (selected) selected.selected = true;
    show();
  };

  const show = () => {
    const tiles = tilesOf(prompt.value);
    const baseline = tiles.find((tile) => "baseline" in tile.dataset);
    const tile = tiles[other.value] ?? baseline ?? tiles[0];
    const shown = picture(tile, "picture");
    const left = baseline ? picture(baseline, "picture") : shown;
    const difference = picture(tile, "difference");
    first("img.left", stage).src = left.src;
    first("img.right", stage).src = shown.src;
    const drawn = first("img.difference", stage);
    if (difference) drawn.src = difference.src;
    else drawn.removeAttribute("src");
    for (const image of every("img", stage)) image.classList.toggle("pixels", shown.width < 200 && shown.naturalWidth < 200);
    stage.style.aspectRatio = `${shown.getAttribute("width")} / ${shown.getAttribute("height")}`;
    for (const button of every(".frame", section)) button.setAttribute("aria-pressed", String(button.parentElement === tile));
    chosen = { tile, hasDifference: Boolean(difference), hasBaseline: Boolean(baseline) };
    compare.caption();
  };

  compare.caption = () => {
    const option = other.selectedOptions[0];
    first(".of-right", comparing).textContent = option ? option.dataset[language()] : "";
    first(".of-left", comparing).style.visibility = chosen.hasBaseline ? "" : "hidden";
    first(".of-difference", comparing).textContent = chosen.hasDifference
      ? first(`.factor .${language()}`, chosen.tile).textContent
      : "= 0";
  };

  prompt.addEventListener("change", () => fill(other.selectedOptions[0]?.dataset.en));
  other.addEventListener("change", show);
  edge.addEventListener("input", () => stage.style.setProperty("--edge", `${edge.value}%`));
  for (const radio of comparing.elements.view) {
    radio.addEventListener("change", () => {
      section.dataset.view = comparing.elements.view.value;
    });
  }
  comparing.addEventListener("submit", (event) => event.preventDefault());
  for (const button of every(".frame", section)) {
    button.addEventListener("click", () => {
      const tile = button.closest(".tile");
      prompt.value = button.closest(".sheet").dataset.prompt;
      const [en] = titles(tile)[0];
      fill(en);
      comparing.scrollIntoView({ block: "nearest" });
    });
  }
  fill();
}
