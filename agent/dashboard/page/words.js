// What the wire's words mean to people. Knows no element.

const DECISIONS = {
  insufficient: "Not enough tissue yet",
  provisional: "Provisional",
  high_confidence: "High confidence",
  out_of_domain: "Unlike anything the model was made for – do not use",
  final: "Final – below high confidence",
};

const REJECTED = {
  empty: "No tissue",
  textureless: "No structure",
  blood: "Blood",
  saturated: "Over-exposed",
  constant: "No signal",
  truncated: "File cut off",
  missing_channel: "Channel missing",
  unreadable: "Unreadable",
  vanished: "File vanished",
};

/** `missing_channel` → "Missing channel": for words that this page does not know. */
export function plain(word) {
  const text = clip(String(word).replaceAll("_", " "), 60);
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function clip(text, length) {
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
}

export const rejection = (word) => (Object.hasOwn(REJECTED, word) ? REJECTED[word] : plain(word));

export const decisionWords = (word) => (Object.hasOwn(DECISIONS, word) ? DECISIONS[word] : plain(word));

/** Why the decision is not a stronger one, in a sentence with its figures. */
export function reasonSentence(result) {
  const { counts, minimum_patches: least, domain, confidence } = result;
  const line = percent(result.operating_point);
  switch (result.decision_reason) {
    case "too_few_patches":
      return `${counts.used} of at least ${least} patches with usable tissue so far.`;
    case "embedding_far":
      return domain ? `${domain.embedding_far} of ${domain.judged} patches look unlike those it learned from.` : "";
    case "intensity_outside":
      return domain ? `${domain.intensity_outside} of ${domain.judged} patches have a brightness it was not made for.` : "";
    case "below_operating_point":
      return `${percent(confidence)} is below the line of ${line}.`;
    case "interval_too_wide":
      return `Above the line of ${line}, but too uncertain: the interval reaches down to ${percent(lowest(result))}.`;
    case "meets_every_rule":
      return `Above the line of ${line}, from ${counts.used} patches.`;
    default:
      return plain(result.decision_reason);
  }
}

function lowest(result) {
  return result.interval?.[result.classes.indexOf(result.predicted)]?.[0] ?? 0;
}

/** Never rounded up to certainty, nor over a line: 0.7699 is 76 %, 0.9999 is 99 %. */
export function percent(share) {
  if (typeof share !== "number") return "–";
  if (share > 0 && share < 0.01) return "<\u00a01\u00a0%";
  return `${Math.floor(share * 100 + 1e-9)}\u00a0%`;
}

/** Rounded outwards: an interval is never shown narrower than it is. */
export const interval = (low, high) => `${Math.floor(low * 100 + 1e-9)} to ${Math.ceil(high * 100 - 1e-9)}\u00a0%`;

/** "0.4 s", "12 s", "3 min", "2 h"; without `exact`, whole seconds. */
export function duration(seconds, exact = true) {
  if (exact && seconds < 9.95) return `${Math.max(0, seconds).toFixed(1)} s`;
  if (seconds < 120) return `${Math.max(0, Math.floor(seconds))} s`;
  return seconds < 7200 ? `${Math.floor(seconds / 60)} min` : `${Math.floor(seconds / 3600)} h`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const EXACT = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

/** 14:03, in the time zone of the screen. */
export const clock = (time) => CLOCK.format(new Date(time));
export const exactClock = (time) => EXACT.format(new Date(time));

/** "240 ms", "1.4 s". */
export const brief = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : duration(ms / 1000));

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;
