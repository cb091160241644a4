// The answer: one name, one decision in words, why, and the bars with their intervals and the line.

import { byId, lines, make, say, show } from "./elements.js";
import { classImage, lettersOf } from "./palette.js";
import { brief, clip, count, decisionWords, interval, percent, plain, reasonSentence, rejection } from "./words.js";

const NAMELESS = { insufficient: "No answer yet", out_of_domain: "No answer" };
const ICONS = new Set(["insufficient", "provisional", "high_confidence", "out_of_domain", "final"]);

/** What stands where the answer is: the class, or that there is none. */
export function nameOf(result) {
  if (result === null) return "No answer yet";
  return NAMELESS[result.decision] ?? (result.predicted === null ? "No answer yet" : clip(plain(result.predicted), 60));
}

export function drawAnswer(view, verdict) {
  const result = view.patient;
  const section = byId("answer");
  section.dataset.decision = result?.decision ?? "none";
  section.dataset.current = String(verdict.current);
  show(byId("not-current"), result !== null && !verdict.current);
  say(byId("answer-scope"), result === null ? "Answer" : scopeOf(result, verdict.current));
  drawName(nameOf(result));
  const icon = ICONS.has(result?.decision) ? result.decision : "waiting";
  byId("decision-icon").setAttribute("href", `#icon-${icon}`);
  say(byId("decision-words"), result === null ? waiting(view) : decisionWords(result.decision));
  say(byId("reason"), result === null ? "" : clip(reasonSentence(result), 200));
  drawCorrection(result);
  show(byId("bars"), result !== null);
  show(byId("figures"), result !== null);
  if (result === null) return;
  drawBars(result);
  drawFigures(result);
}

function waiting({ current }) {
  return current?.slide ? "Waiting for the first patches" : "Waiting for a slide";
}

function drawName(name) {
  const element = byId("answer-name");
  say(element, name);
  element.dataset.length = name.length > 24 ? "very-long" : name.length > 14 ? "long" : "short";
}

function scopeOf(result, current) {
  const slides = result.slides > 0 ? ` from ${count(result.slides, "slide")}` : "";
  if (result.kind === "patient.final") return `Final answer${slides}`;
  return `${current ? "Answer so far" : "Last answer"}${slides}`;
}

function drawCorrection(result) {
  const revision = result?.revision ?? 1;
  show(byId("corrected"), revision > 1);
  say(byId("corrected"), `Corrected: revision ${revision}`);
}

function drawBars(result) {
  const letters = lettersOf(result.classes);
  const line = result.operating_point * 100;
  const label = byId("line-label");
  say(label, `${Math.round(line)} %`);
  label.style.left = `${line}%`;
  lines(
    byId("bar-list"),
    result.classes,
    (name) => name,
    beginBar,
    (row, name, place) => {
      const share = result.probabilities?.[place] ?? null;
      const [low, high] = result.interval?.[place] ?? [0, 0];
      const { fill, whisker, mark, letter, title, value, range } = row.parts;
      row.classList.toggle("leading", name === result.predicted);
      say(letter, letters[place]);
      letter.style.backgroundImage = fill.style.backgroundImage = classImage(place);
      say(title, clip(plain(name), 60));
      fill.style.width = `${(share ?? 0) * 100}%`;
      show(whisker, share !== null);
      whisker.style.left = `${low * 100}%`;
      whisker.style.width = `${(high - low) * 100}%`;
      mark.style.left = `${line}%`;
      say(value, percent(share));
      say(range, share === null ? "" : interval(low, high));
    },
  );
  const mass = Math.round(result.interval_mass * 100);
  say(byId("interval-note"), `Thin line: ${mass} % credible interval. Upright line: ${Math.round(line)} %, needed for high confidence.`);
}

function beginBar() {
  const parts = {
    letter: make("span", "letter"),
    title: make("span", "bar-name"),
    fill: make("span", "fill"),
    whisker: make("span", "whisker"),
    mark: make("span", "mark"),
    value: make("b", "bar-value"),
    range: make("span", "bar-range"),
  };
  const track = make("span", "track", parts.fill, parts.mark, parts.whisker);
  parts.letter.setAttribute("aria-hidden", "true");
  track.setAttribute("aria-hidden", "true");
  const row = make("li", "bar", parts.letter, parts.title, track, make("span", "bar-figures", parts.value, " ", parts.range));
  row.parts = parts;
  return row;
}

function drawFigures(result) {
  const { used, rejected } = result.counts;
  say(byId("used"), `${used} (at least ${result.minimum_patches} needed)`);
  const reasons = Object.entries(rejected).filter(([, number]) => number > 0);
  const all = reasons.reduce((sum, [, number]) => sum + number, 0);
  const named = reasons.slice(0, 6).map(([word, number]) => `${number} ${clip(rejection(word), 30).toLowerCase()}`);
  say(byId("rejected"), all === 0 ? "0" : `${all}: ${named.join(", ")}`);
  const took = result.latency?.last_byte_to_result_ms ?? null;
  say(byId("latency"), took === null ? "–" : brief(took));
}
