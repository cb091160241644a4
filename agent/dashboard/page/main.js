// Joins the page: what the server says → what is drawn. What was drawn last is what counts as heard, so that a page
// that cannot draw any more finds itself stale.

import { drawAnswer, nameOf } from "./answer.js";
import { byId, say } from "./elements.js";
import { judge } from "./freshness.js";
import { MapPanel } from "./map-panel.js";
import { drawLists, drawPulse, drawWho } from "./panels.js";
import { follow } from "./stream.js";
import { decisionWords } from "./words.js";

const PULSE_MS = 200;
const SPEAK_AFTER_MS = 1200; // an answer that flickers is not read out

const panel = new MapPanel();
let view = null;
let drawnAt = performance.now();
let cut = false;
let verdict = judge(null, 0, cut);
let announced = "";
let pending = "";
let pendingSince = 0;

function hearView(next) {
  if (view !== null && next.boot !== view.boot) {
    location.reload();
    return;
  }
  verdict = judge(next, 0, false);
  drawWho(next);
  drawAnswer(next, verdict);
  panel.draw(next);
  drawLists(next);
  view = next;
  cut = false;
  drawnAt = performance.now();
  pulse();
}

function pulse() {
  const silentMs = performance.now() - drawnAt;
  const before = verdict.current;
  verdict = judge(view, silentMs, cut);
  if (view !== null && verdict.current !== before) drawAnswer(view, verdict);
  document.body.dataset.current = String(verdict.current);
  drawPulse(view, verdict, silentMs);
  announce();
}

/** For screen readers: trouble at once, the answer when it has stood for a moment, and nothing twice. */
function announce() {
  say(byId("spoken-alarm"), verdict.tone === "trouble" ? `${verdict.title}. The answer shown is not current.` : "");
  const said = view?.patient ? `${nameOf(view.patient)}. ${decisionWords(view.patient.decision)}.${verdict.current ? "" : " Not current."}` : "";
  if (said !== pending) {
    pending = said;
    pendingSince = performance.now();
  } else if (said !== announced && performance.now() - pendingSince > SPEAK_AFTER_MS) {
    announced = said;
    say(byId("spoken"), said);
  }
}

function hearCut() {
  cut = true;
  pulse();
}

follow("/events", { view: hearView, patches: (patches) => panel.take(patches), cut: hearCut });
setInterval(pulse, PULSE_MS);
pulse();
