// Status strip, banner, and the lists at the foot: slides of the patient, finals of today, alerts.

import { byId, lines, make, say, show } from "./elements.js";
import { clip, clock, count, decisionWords, duration, exactClock, percent, plain } from "./words.js";

const BROKER = { connected: "Connected", lost: "Lost", connecting: "Connecting" };
const AGENT = { online: "Online", stopped: "Switched off", offline: "Lost", unheard: "Not heard", unknown: "Unknown" };
const ARRIVING = { receiving: "Receiving", silent: "Nothing arriving", ended: "Slide complete", idle: "No slide open", unknown: "Unknown" };

/** Lights, clock and banner, several times a second. `verdict` and `silentMs` are those of freshness.js. */
export function drawPulse(view, verdict, silentMs) {
  const { heard } = verdict;
  const through = heard && view?.broker.state === "connected";
  const arriving = through ? arrivingOf(view) : "unknown";
  light("imager", ARRIVING[arriving] ?? plain(arriving), { receiving: "good", ended: "calm", idle: "calm" }[arriving] ?? "bad");
  say(byId("imager-age"), arriving === "receiving" || arriving === "silent" ? sinceByte(view, silentMs) : "");
  const agent = through ? (view.agent?.state ?? "unheard") : "unknown";
  light("agent", AGENT[agent], agent === "online" ? "good" : "bad");
  const broker = heard ? view?.broker.state : undefined;
  light("broker", BROKER[broker] ?? "Unknown", broker === "connected" ? "good" : "bad");
  say(byId("clock"), clock(Date.now()));
  say(byId("silence"), arriving === "silent" ? silence(view, silentMs) : "");
  show(byId("silence"), arriving === "silent");
  drawBanner(verdict);
}

/** Silence after the last strip of a slide is no trouble: the next slide may take its time. */
function arrivingOf({ arriving, current, slides }) {
  const open = slides.find(({ slide }) => slide === current?.slide);
  return arriving === "silent" && open?.is_final && open.result.state === "complete" ? "ended" : arriving;
}

const byteAge = (view, silentMs) => (view.last_byte_age_s === null ? null : duration(view.last_byte_age_s + silentMs / 1000));

function sinceByte(view, silentMs) {
  const age = byteAge(view, silentMs);
  return age === null ? "no byte yet" : `${age} ago`;
}

function silence(view, silentMs) {
  const age = byteAge(view, silentMs);
  return age === null ? "Nothing arriving yet" : `Nothing arriving for ${age}`;
}

function light(name, word, tone) {
  say(byId(`${name}-word`), word);
  byId(`light-${name}`).dataset.tone = tone;
}

function drawBanner({ tone, title, detail }) {
  const banner = byId("banner");
  show(banner, tone !== null);
  document.body.dataset.banner = String(tone !== null);
  banner.dataset.tone = tone ?? "";
  say(byId("banner-title"), title);
  say(byId("banner-detail"), detail);
}

export function drawWho(view) {
  const { patient, labels } = view;
  const id = patient?.patient ?? view.current?.patient ?? null;
  say(byId("patient"), id === null ? "No patient" : clip(labels[id] ?? "Patient", 40));
  say(byId("patient-id"), id === null ? "" : id.slice(0, 6));
  show(byId("phantom"), view.demo);
  const result = patient;
  const parts = [
    result ? `profile ${clip(result.profile.name, 40)} v${result.profile.version}` : null,
    result ? `engine ${clip(result.engine.name, 30)} ${clip(result.engine.precision, 12)}` : null,
    view.agent ? `agent ${clip(view.agent.version, 20)}` : null,
  ];
  say(byId("origin"), parts.filter(Boolean).join(", "));
}

/** A line of a list: what, a main word, a smaller one, and a note. */
function beginLine() {
  const parts = { when: make("span", "when"), main: make("b", "line-main"), more: make("span", "line-more") };
  const line = make("li", "line", parts.when, parts.main, parts.more);
  line.parts = parts;
  return line;
}

function fill(list, nothing, items, keyOf, describe) {
  show(byId(nothing), items.length === 0);
  lines(byId(list), items, keyOf, beginLine, (line, item) => {
    const { when, main, more, mark } = describe(item);
    line.dataset.mark = mark ?? "";
    say(line.parts.when, when);
    say(line.parts.main, main);
    say(line.parts.more, more);
  });
}

export function drawLists(view) {
  fill("slides", "no-slides", view.slides, (slide) => slide.slide, describeSlide);
  fill("history", "no-history", view.history, (final) => `${final.time} ${final.patient} ${final.slide} ${final.revision}`, (final) => describeFinal(final, view.labels));
  fill("alerts", "no-alerts", view.alerts, (alert, place) => `${alert.time} ${alert.reason} ${place}`, describeAlert);
}

function answered(predicted, confidence, decision) {
  const named = predicted !== null && decision !== "insufficient" && decision !== "out_of_domain";
  return named ? `${clip(plain(predicted), 40)} ${percent(confidence)}` : "No answer";
}

function describeSlide({ label, result, is_final: final, corrected, revision }) {
  const { strips, counts, predicted, confidence, decision } = result;
  const done = strips.expected === null ? count(strips.done, "strip") : `${strips.done} of ${count(strips.expected, "strip")}`;
  const notes = [decisionWords(decision), final ? "ended" : null, done, `${counts.used} patches`];
  if (corrected) notes.push(`corrected, revision ${revision}`);
  return {
    when: clip(label, 24),
    main: answered(predicted, confidence, decision),
    more: notes.filter(Boolean).join(", "),
    mark: corrected ? "corrected" : "",
  };
}

function describeFinal(final, labels) {
  const { time, patient, slide, predicted, confidence, decision, revision, superseded } = final;
  const of = [labels[patient] ?? "Patient", slide === null ? "all slides" : (labels[slide] ?? "one slide")];
  const notes = [decisionWords(decision), of.map((word) => clip(word, 30)).join(", ")];
  if (revision > 1) notes.push(`revision ${revision}`);
  if (superseded) notes.push("replaced by a later one");
  return {
    when: clock(time),
    main: answered(predicted, confidence, decision),
    more: notes.join(", "),
    mark: superseded ? "superseded" : slide === null ? "whole" : "",
  };
}

function describeAlert({ time, severity, reason, detail, file }) {
  return {
    when: exactClock(time),
    main: `${severity === "error" ? "Error" : "Warning"}: ${plain(reason).toLowerCase()}`,
    more: clip([detail, file].filter(Boolean).join(", "), 240),
    mark: severity,
  };
}
