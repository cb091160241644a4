// Decides whether what the page shows is current, and what stands in the banner when it is not. Pure.

import { clip, clock, duration, exactClock } from "./words.js";

const SERVER_LOST_MS = 2500; // the server says something every second

const trouble = (title, detail) => ({ current: false, heard: true, tone: "trouble", title, detail });
const calm = (title, detail) => ({ current: false, heard: true, tone: "calm", title, detail });
const CURRENT = { current: true, heard: true, tone: null, title: "", detail: "" };

/** `view` is the last one drawn, `silentMs` the time since then, `cut` whether the connection has ended since then. */
export function judge(view, silentMs, cut) {
  if (silentMs > SERVER_LOST_MS || (cut && view !== null)) return { ...lostServer(view, silentMs), heard: false };
  if (view === null) return calm("Connecting", "Waiting for the dashboard server.");
  return judgeBroker(view) ?? judgeAgent(view) ?? judgeHealth(view, silentMs) ?? judgePatient(view) ?? CURRENT;
}

function lostServer(view, silentMs) {
  const when = view === null ? "since it was opened" : `since ${exactClock(Date.now() - silentMs)}`;
  return trouble(
    "This screen has lost its server",
    `Nothing heard ${when} (${duration(silentMs / 1000, false)}). It tries again every second.`,
  );
}

function judgeBroker({ broker, now }) {
  if (broker.state === "connected") return null;
  const since = (Date.parse(now) - Date.parse(broker.since)) / 1000;
  const why = broker.reason ? ` Reason: ${clip(broker.reason, 90)}.` : "";
  if (broker.state === "connecting") return calm("Connecting to the message broker", `For ${duration(since, false)}.${why}`);
  return trouble("Message broker lost", `Nothing new can arrive. Lost at ${exactClock(broker.since)}, ${duration(since, false)} ago.${why}`);
}

function judgeAgent({ agent, broker }) {
  if (agent === null) return calm("Waiting for the agent", clip(broker.reason, 300) || "It has not said anything yet. Is it running?");
  if (agent.state === "offline") {
    return trouble("Agent lost", `It ended without a farewell or lost its network at ${exactClock(agent.since)}.`);
  }
  return agent.state === "stopped" ? trouble("Agent switched off", `Since ${exactClock(agent.since)}.`) : null;
}

function judgeHealth({ health }, silentMs) {
  if (health !== null && !health.stale) return null;
  if (health === null) return calm("Waiting for a sign of life", "The agent is online, but has not sent figures about itself yet.");
  return trouble("Agent silent", `No sign of life from it for ${duration(health.age_s + silentMs / 1000, false)}.`);
}

function judgePatient({ patient, patient_is_past: past, labels }) {
  if (patient === null || !past) return null;
  const who = labels[patient.patient] ?? "This patient";
  const end = patient.kind === "patient.final" ? "ended" : "last heard";
  return calm(`Past result: ${end} ${clock(patient.time)}`, `${who} is no longer being imaged. No slide is open.`);
}
