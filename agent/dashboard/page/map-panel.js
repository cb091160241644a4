// The heat map's panel: which slide is shown, its progress, its legend, and the same picture as a table.

import { byId, lines, make, say, show } from "./elements.js";
import { Picture, SlideMap } from "./heatmap.js";
import { Brush, lettersOf } from "./palette.js";
import { clip, count, plain, rejection } from "./words.js";

const MOST_MAPS = 8;
const MOST_ON_THEIR_WAY = 60;
const SWATCH_PX = 36;

export class MapPanel {
  constructor() {
    this.maps = new Map();
    this.slides = [];
    this.current = null;
    this.chosen = null;
    this.asTable = false;
    this.wasOpen = false;
    this.picture = new Picture(byId("canvas"), byId("map-frame"), () => this.repaint());
    byId("table-switch").addEventListener("click", () => this.#turn());
  }

  /** Takes a `patches` event. */
  take(patches) {
    const held = this.maps.get(patches.slide) ?? new SlideMap();
    const fresh = held.take(patches);
    this.maps.delete(patches.slide);
    this.maps.set(patches.slide, held);
    if (this.maps.size > MOST_MAPS) this.maps.delete(this.maps.keys().next().value);
    if (patches.slide !== this.shown) return;
    if (fresh === null) this.picture.paint(held);
    else this.picture.add(held, fresh);
    this.#describe();
  }

  /** Takes a `view`: a slide that begins is shown, unless a person has chosen another of the same patient. */
  draw(view) {
    const before = this.shown;
    const ids = view.slides.map(({ slide }) => slide);
    const current = view.current?.slide ?? null;
    if (current !== this.current || !ids.includes(this.chosen)) this.chosen = null;
    this.current = current;
    this.slides = view.slides;
    this.#drawTabs();
    this.#drawProgress();
    if (this.shown !== before || this.#isOpen() !== this.wasOpen) this.repaint();
    else this.#drawHoles();
    this.wasOpen = this.#isOpen();
  }

  /** The slide on the canvas: the chosen one, else the one being imaged, else the last. */
  get shown() {
    if (this.chosen !== null) return this.chosen;
    const ids = this.slides.map(({ slide }) => slide);
    return ids.includes(this.current) ? this.current : (ids.at(-1) ?? null);
  }

  repaint() {
    this.picture.paint(this.maps.get(this.shown));
    this.#describe();
  }

  #turn() {
    this.asTable = !this.asTable;
    byId("table-switch").setAttribute("aria-pressed", String(this.asTable));
    show(byId("map-table-frame"), this.asTable);
    show(byId("map-frame"), !this.asTable);
    this.repaint();
  }

  #drawTabs() {
    const begin = ({ slide }) => {
      const tab = make("button", "tab");
      tab.type = "button";
      tab.addEventListener("click", () => {
        this.chosen = slide;
        this.#drawTabs();
        this.#drawProgress();
        this.repaint();
      });
      return tab;
    };
    lines(byId("slide-tabs"), this.slides, ({ slide }) => slide, begin, (tab, { slide, label }) => {
      say(tab, clip(label, 24));
      tab.setAttribute("aria-pressed", String(slide === this.shown));
    });
  }

  #drawProgress() {
    const slide = this.#slideShown;
    const { done = 0, expected = null } = slide?.result.strips ?? {};
    const marks = expected !== null && expected <= 40 ? Array.from({ length: expected }, (_, at) => at < done) : [];
    lines(byId("strip-marks"), marks, (_, at) => at, () => make("span", "strip-mark"), (mark, full) => mark.classList.toggle("full", full));
    const words = expected === null ? `${count(done, "strip")} complete` : `${done} of ${count(expected, "strip")} complete`;
    say(byId("strip-words"), slide ? `${words}${slide.is_final ? ", ended" : ""}` : "");
  }

  get #slideShown() {
    return this.slides.find(({ slide }) => slide === this.shown);
  }

  /** Whether strips of the slide shown are still to come. */
  #isOpen() {
    const slide = this.#slideShown;
    const { done = 0, expected = null } = slide?.result.strips ?? {};
    return !slide?.is_final && (expected === null || done < expected);
  }

  /** Patches that the result counts and the picture lacks: the agent sends them in batches, and some may get lost. */
  #drawHoles() {
    const held = this.maps.get(this.shown)?.cells.size ?? 0;
    const slide = this.#slideShown;
    const missing = held > 0 ? Math.max(0, (slide?.result.counts.seen ?? 0) - held) : 0;
    const words = !slide?.is_final && missing < MOST_ON_THEIR_WAY ? "on their way" : "not shown";
    say(byId("holes"), missing > 0 ? `${count(missing, "patch", "patches")} ${words}` : "");
    show(byId("holes"), missing > 0);
  }

  #describe() {
    const map = this.maps.get(this.shown);
    const rows = map ? map.table() : [];
    const empty = rows.length === 0;
    show(byId("map-empty"), empty);
    show(byId("surer"), !empty);
    this.#drawHoles();
    const kinds = empty ? [] : kindsOf(map, rows);
    drawLegend(kinds, map, this.#isOpen());
    drawTable(kinds, rows);
    const said = kinds.filter(({ total }) => total > 0).map(({ total, words }) => `${total} ${words.toLowerCase()}`);
    byId("canvas").setAttribute("aria-label", empty ? "Heat map: nothing yet" : `Heat map: ${said.join(", ")}. The same as a table: switch above.`);
  }
}

/** Everything that a cell may be: classes first, then reasons, each with how many there are. */
function kindsOf(map, rows) {
  const total = (pick) => rows.reduce((sum, row) => sum + pick(row), 0);
  const classes = map.classes.map((name, at) => ({ words: clip(plain(name), 40), kind: "used", at, pick: (row) => row.classes[at] }));
  const reasons = map.reasons.map((name, at) => ({ words: clip(rejection(name), 40), kind: "rejected", at: name, pick: (row) => row.reasons[at] ?? 0 }));
  return [...classes, ...reasons].map((kind) => ({ ...kind, total: total(kind.pick) }));
}

function drawLegend(kinds, map, open) {
  const coming = kinds.length > 0 && open;
  const entries = coming ? [...kinds, { words: "Still to come", kind: "expected", at: 0, total: null }] : kinds;
  const begin = ({ kind, at }) => {
    const swatch = make("canvas", "swatch");
    swatch.width = swatch.height = SWATCH_PX;
    swatch.setAttribute("aria-hidden", "true");
    const brush = new Brush(swatch.getContext("2d"));
    if (kind === "used") brush.used(0, 0, SWATCH_PX, at, 1, lettersOf(map.classes));
    else if (kind === "rejected") brush.rejected(0, 0, SWATCH_PX, at);
    else brush.expected(0, 0, SWATCH_PX, SWATCH_PX);
    const entry = make("li", `entry ${kind}`, swatch, make("span", "entry-words"), make("b", "entry-count"));
    return entry;
  };
  lines(byId("legend"), entries, ({ kind, words }) => `${kind} ${words}`, begin, (entry, { words, total }) => {
    say(entry.children[1], words);
    say(entry.children[2], total === null ? "" : String(total));
  });
}

function drawTable(kinds, rows) {
  const cell = (tag, text, scope) => {
    const made = make(tag, "", text);
    if (scope) made.scope = scope;
    return made;
  };
  const head = make("tr", "", cell("th", "Strip", "col"), ...kinds.map(({ words }) => cell("th", words, "col")));
  const body = rows.map((row, place) => make("tr", "", cell("th", String(place + 1), "row"), ...kinds.map(({ pick }) => cell("td", String(pick(row))))));
  const table = byId("map-table");
  table.replaceChildren(make("caption", "", "Patches of each scan strip"), make("thead", "", head), make("tbody", "", ...body));
}
