// One slide's heat map: which cells are held, where they lie, and how they are painted. Knows no element but its canvas.

import { Brush, lettersOf } from "./palette.js";

/** The cells of one slide, as `patches` events bring them. Scan strips lie side by side in the order of their numbers,
 * which may have gaps: some imagers count other objects between them. */
export class SlideMap {
  constructor() {
    this.cells = new Map();
    this.ranks = new Map(); // number of a strip → its place from the left
  }

  /** Takes one `patches` event; returns the cells that are new or changed, or null when all must be painted again. */
  take({ reset, size_px: size, stride_px: stride, classes, reasons, strips, cells }) {
    if (reset) this.cells.clear();
    const before = JSON.stringify(this.bounds());
    Object.assign(this, { size, stride, classes, reasons, strips });
    const fresh = cells.map(([x, y, code, confidence]) => {
      const strip = stride > 0 ? Math.floor(x / stride) : 0;
      return { strip, x: x - strip * stride, y, code, confidence };
    });
    for (const cell of fresh) this.cells.set(`${cell.strip},${cell.x},${cell.y}`, cell);
    const known = this.ranks.size;
    this.#rank(reset);
    const same = !reset && this.ranks.size === known && JSON.stringify(this.bounds()) === before;
    return same ? fresh : null;
  }

  #rank(anew) {
    const numbers = new Set(anew ? [] : this.ranks.keys());
    for (const { strip } of this.cells.values()) numbers.add(strip);
    this.ranks = new Map([...numbers].sort((a, b) => a - b).map((strip, place) => [strip, place]));
  }

  /** The area that the slide will fill, in pixels of the slide. Until a strip is complete it is taken to be square. */
  bounds() {
    if (this.cells.size === 0) return null;
    const { size, stride, strips } = this;
    let [left, right, top, bottom] = [Infinity, 0, 0, 0];
    for (const { x, y } of this.cells.values()) {
      left = Math.min(left, x);
      right = Math.max(right, x + size);
      bottom = Math.max(bottom, y + size);
      top = Math.min(top, y);
    }
    const columns = stride > 0 ? Math.max(strips.expected ?? 1, this.ranks.size) : 1;
    const width = (columns - 1) * stride + right - left;
    const height = Math.max(bottom - top, strips.done === 0 ? width : 0);
    return { left, top, width, height, columns, strip: right - left };
  }

  /** Where a cell lies, in pixels of the slide. */
  placeOf({ strip, x, y }) {
    return [this.ranks.get(strip) * this.stride + x, y];
  }

  /** How many patches of each class and of each reason, strip by strip: the same picture in numbers. */
  table() {
    const rows = Array.from({ length: this.ranks.size }, () => ({
      classes: this.classes.map(() => 0),
      reasons: this.reasons.map(() => 0),
    }));
    for (const { strip, code } of this.cells.values()) {
      const row = rows[this.ranks.get(strip)];
      if (code >= 0) row.classes[code] += 1;
      else row.reasons[-1 - code] += 1;
    }
    return rows;
  }
}

/** Paints slide maps on a canvas that keeps the size of its frame. */
export class Picture {
  constructor(canvas, frame, repaint) {
    this.canvas = canvas;
    this.frame = frame;
    this.brush = new Brush(canvas.getContext("2d"));
    new ResizeObserver(repaint).observe(frame);
  }

  /** Everything, after another slide was chosen or the area changed. */
  paint(map) {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.frame;
    const { canvas, brush } = this;
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round(height * ratio));
    const bounds = map?.bounds();
    if (!bounds || width < 2 || height < 2) return;
    this.#place(map, bounds, ratio);
    const { scale, x, y } = this;
    for (let strip = 0; strip < bounds.columns; strip += 1) {
      brush.expected(x + strip * map.stride * scale, y, bounds.strip * scale, bounds.height * scale);
    }
    this.add(map, [...map.cells.values()].sort((a, b) => a.y - b.y || a.x - b.x));
  }

  /** Only these cells: the area is the one that was painted. */
  add(map, cells) {
    const letters = lettersOf(map.classes);
    const gap = map.size * this.scale >= 8 ? 1 : 0;
    const side = Math.max(1, map.size * this.scale - gap);
    const least = 255 / map.classes.length;
    for (const cell of cells) {
      const [across, down] = map.placeOf(cell);
      const x = this.x + (across - this.left) * this.scale;
      const y = this.y + (down - this.top) * this.scale;
      const strength = Math.min(1, Math.max(0, (cell.confidence - least) / (255 - least)));
      if (cell.code >= 0) this.brush.used(x, y, side, cell.code, strength, letters);
      else this.brush.rejected(x, y, side, map.reasons[-1 - cell.code]);
    }
  }

  #place(map, bounds, ratio) {
    const { canvas } = this;
    this.scale = Math.min(canvas.width / bounds.width, canvas.height / bounds.height);
    this.left = bounds.left;
    this.top = bounds.top;
    this.x = Math.round((canvas.width - bounds.width * this.scale) / 2);
    this.y = Math.round((canvas.height - bounds.height * this.scale) / 2);
    // Where the picture lies, for whoever wants to look at single cells.
    const { x, y, scale, left, top } = this;
    canvas.dataset.place = JSON.stringify({ x, y, scale, left, top, ratio, size: map.size });
  }
}
