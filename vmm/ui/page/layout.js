// Where groups of squares stand: in strips of one height that fill the width, so that a group's area says how large it is (after the strip treemaps of
// Bederson, Shneiderman and Wattenberg, "Ordered and quantum treemaps", 2002). Pure: numbers in, numbers out.

export const HEAD = 17;
const GAP = 10;
const LEAST = 4;
const MOST = 28;
/** Squares of this pitch have room for marks: worth some height. */
const MARKED = 6;
/** Rows by columns of a usual group, the nicest first: which of them fill a window depends on its width. */
const SHAPES = [0.8, 1, 1.3, 1.7, 2.2, 0.6, 0.4];

/** `sizes`: squares of each group. Answers the pitch of squares and, for each group, x, y, columns and rows. */
export function arrange(sizes, width, height) {
  const label = 58;
  for (let pitch = MOST; pitch >= LEAST; pitch -= 1) {
    const room = pitch === MARKED ? height * 1.3 : height;
    const ways = SHAPES.map((shape) => strips(sizes, width, pitch, Math.ceil(label / pitch), shape));
    const found = ways.reduce((a, b) => (b.height < a.height ? b : a));
    if (found.height <= room || pitch === LEAST) return found;
  }
}

function strips(sizes, width, pitch, least, shape) {
  const gap = Math.ceil(GAP / pitch);
  const columns = Math.max(least, Math.floor((width + 1) / pitch));
  // A strip is about as high as a square group of the usual size is.
  const mean = sizes.reduce((sum, n) => sum + n, 0) / Math.max(1, sizes.length);
  const usual = Math.max(1, Math.ceil(Math.sqrt(mean * shape)));
  const boxes = [];
  let y = 0;
  for (let from = 0; from < sizes.length; ) {
    let to = from, used = 0;
    while (to < sizes.length) {
      const more = Math.max(least, Math.ceil(sizes[to] / usual)) + gap;
      if (to > from && used + more > columns + gap) break;
      used += more;
      to += 1;
    }
    const strip = sizes.slice(from, to);
    const needs = (rows) => strip.reduce((sum, n) => sum + Math.max(least, Math.ceil(n / rows)) + gap, -gap);
    let rows = Math.ceil(Math.max(...strip) / columns) || 1;
    // The last strip need not fill the width.
    if (to === sizes.length && from > 0 && used * 1.5 < columns) rows = Math.max(rows, usual);
    while (needs(rows) > columns && rows < 65536) rows += 1;
    // What the division leaves over is shared out.
    let spare = columns - needs(rows);
    if (to === sizes.length && from > 0 && rows === usual) spare = 0;
    let x = 0;
    strip.forEach((n, at) => {
      const extra = Math.floor((spare * (at + 1)) / strip.length) - Math.floor((spare * at) / strip.length);
      const wide = Math.max(least, Math.ceil(n / rows)) + extra;
      boxes.push({ x: x * pitch, y, columns: wide, rows: Math.ceil(n / wide) });
      x += wide + gap;
    });
    y += HEAD + rows * pitch + GAP;
    from = to;
  }
  return { pitch, boxes, height: Math.max(0, y - GAP) };
}
