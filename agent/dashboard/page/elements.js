// Small ways to write into the page. Text goes in as text only: what arrives is never taken for markup.

/** The element with this id, which must be there. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

/** A new element; `content` is text or elements. */
export function make(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content.filter((part) => part !== null && part !== ""));
  return made;
}

/** Text that is written only when it changes, so that screen readers are not told the same thing again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function show(element, shown) {
  if (element.hidden === shown) element.hidden = !shown;
}

/** One child for each item, in order. Children are kept by key, so that focus and transitions survive. */
export function lines(parent, items, keyOf, begin, update) {
  const held = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const used = new Set();
  items.forEach((item, place) => {
    let key = String(keyOf(item, place));
    while (used.has(key)) key += "+";
    used.add(key);
    const child = held.get(key) ?? begin(item, place);
    held.delete(key);
    child.dataset.key = key;
    update(child, item, place);
    if (parent.children[place] !== child) parent.insertBefore(child, parent.children[place] ?? null);
  });
  held.forEach((child) => child.remove());
}
