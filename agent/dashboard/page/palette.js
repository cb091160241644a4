// How classes and rejected patches look: colours that the colour-blind tell apart (Okabe and Ito), a pattern and a
// letter for each class, hatching without colour for rejected patches. Nothing is said by colour alone.

const INK_DARK = "#06090c";
const INK_LIGHT = "#f2f5f7";
const GROUND = "#11171d";
const HATCH = "#8794a1";
const COLOURS = ["#56b4e9", "#e69f00", "#2bb68a", "#cc79a7", "#f0e442", "#e8743b", "#7d9fff", "#c5ccd3"];
const TILE_PX = 12;

const colourOf = (index) => COLOURS[index % COLOURS.length];

// Strokes inside a tile of TILE_PX, as [x1, y1, x2, y2]; a point is a short stroke.
const DIAGONAL = [[-3, 3, 3, -3], [-3, 15, 15, -3], [9, 15, 15, 9]];
const BACK = DIAGONAL.map(([x1, y1, x2, y2]) => [TILE_PX - x1, y1, TILE_PX - x2, y2]);
const LEVEL = [[0, 3, 12, 3], [0, 9, 12, 9]];
const UPRIGHT = LEVEL.map(([x1, y1, x2, y2]) => [y1, x1, y2, x2]);
const DOTS = [[2.5, 3, 3.5, 3], [8.5, 9, 9.5, 9]];
const CLASS_STROKES = [DIAGONAL, DOTS, LEVEL, UPRIGHT, BACK, [...LEVEL, ...UPRIGHT], [...DIAGONAL, ...BACK], []];
const REJECT_STROKES = {
  empty: DIAGONAL,
  blood: [...DIAGONAL, ...BACK],
  textureless: LEVEL,
  saturated: UPRIGHT,
  constant: [...LEVEL, ...UPRIGHT],
};
const OTHER_STROKES = DOTS; // whatever else a reason is called

function tile(strokes, ink, width, ground) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = TILE_PX;
  const pen = canvas.getContext("2d");
  if (ground) {
    pen.fillStyle = ground;
    pen.fillRect(0, 0, TILE_PX, TILE_PX);
  }
  pen.strokeStyle = ink;
  pen.lineWidth = width;
  for (const [x1, y1, x2, y2] of strokes) {
    pen.beginPath();
    pen.moveTo(x1, y1);
    pen.lineTo(x2, y2);
    pen.stroke();
  }
  return canvas;
}

const classTile = (index, ground) => {
  const strokes = CLASS_STROKES[index % CLASS_STROKES.length];
  return tile(strokes, "rgba(0, 0, 0, 0.3)", strokes === DOTS ? 3 : 1.6, ground);
};

/** Paints cells and swatches on one canvas. */
export class Brush {
  constructor(pen) {
    this.pen = pen;
    this.patterns = new Map();
  }

  /** A used patch: the surer, the stronger its colour. `strength` is 0..1. */
  used(x, y, side, index, strength, letters) {
    const { pen } = this;
    const alpha = 0.3 + 0.7 * strength;
    pen.fillStyle = GROUND;
    pen.fillRect(x, y, side, side);
    pen.globalAlpha = alpha;
    pen.fillStyle = colourOf(index);
    pen.fillRect(x, y, side, side);
    pen.globalAlpha = 1;
    if (side >= 6) this.#fill(x, y, side, `class ${index}`, () => classTile(index));
    if (side >= 15) this.#letter(x, y, side, letters[index], alpha > 0.6 ? INK_DARK : INK_LIGHT);
  }

  /** A rejected patch: hatched, without colour. */
  rejected(x, y, side, reason) {
    const { pen } = this;
    pen.fillStyle = GROUND;
    pen.fillRect(x, y, side, side);
    const strokes = Object.hasOwn(REJECT_STROKES, reason) ? REJECT_STROKES[reason] : OTHER_STROKES;
    this.#fill(x, y, side, `reject ${reason}`, () => tile(strokes, HATCH, strokes === DOTS ? 2.4 : 1));
  }

  /** Where a patch is still to come. */
  expected(x, y, width, height) {
    const { pen } = this;
    pen.strokeStyle = HATCH;
    pen.lineWidth = 1.5;
    pen.setLineDash([5, 5]);
    pen.strokeRect(x + 0.75, y + 0.75, width - 1.5, height - 1.5);
    pen.setLineDash([]);
  }

  #fill(x, y, side, name, paint) {
    if (!this.patterns.has(name)) this.patterns.set(name, this.pen.createPattern(paint(), "repeat"));
    this.pen.fillStyle = this.patterns.get(name);
    this.pen.fillRect(x, y, side, side);
  }

  #letter(x, y, side, text, ink) {
    const { pen } = this;
    pen.fillStyle = ink;
    pen.font = `700 ${Math.min(30, Math.round(side * 0.48))}px "Atkinson Hyperlegible Next", sans-serif`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(text, x + side / 2, y + side / 2 + side * 0.03, side);
  }
}

/** CSS image of a class's colour and pattern, for bars. */
export const classImage = (index) => `url(${classTile(index, colourOf(index)).toDataURL()})`;

/** A letter for each class, two where names begin alike: E, Mn, Mt, S. */
export function lettersOf(classes) {
  return classes.map((name, own) => {
    const upper = name.charAt(0).toUpperCase();
    const alike = classes.filter((other, place) => place !== own && other.charAt(0).toUpperCase() === upper);
    if (alike.length === 0) return upper;
    const place = [...name].findIndex((letter, at) => alike.every((other) => other.charAt(at) !== letter));
    return place > 0 ? upper + name.charAt(place) : `${upper}${own + 1}`;
  });
}
