// How a state looks: a colour, and a mark for those who do not tell colours apart. Marks need five points at least.

export const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Draws the square of a state: `size` points wide, at x and y. */
export function square(pen, state, x, y, size) {
  const colour = style(`--s-${state}`);
  const mark = style("--mark");
  const s = size, line = Math.max(1, Math.round(s / 6));
  const full = () => { pen.fillStyle = colour; pen.fillRect(x, y, s, s); };
  const frame = () => {
    pen.strokeStyle = colour;
    pen.lineWidth = line;
    pen.strokeRect(x + line / 2, y + line / 2, s - line, s - line);
  };
  const rect = (a, b, w, h) => {
    const [left, top] = [Math.round(a * s), Math.round(b * s)];
    pen.fillRect(x + left, y + top, Math.max(1, Math.round((a + w) * s) - left), Math.max(1, Math.round((b + h) * s) - top));
  };
  const cross = (inset) => {
    pen.lineWidth = line;
    pen.beginPath();
    pen.moveTo(x + inset, y + inset);
    pen.lineTo(x + s - inset, y + s - inset);
    pen.moveTo(x + s - inset, y + inset);
    pen.lineTo(x + inset, y + s - inset);
    pen.stroke();
  };
  if (s < 5) return full();
  pen.save();
  pen.beginPath();
  pen.rect(x, y, s, s);
  pen.clip();
  switch (state) {
    case "waiting": frame(); pen.fillStyle = colour; rect(0.36, 0.36, 0.28, 0.28); break;
    case "restarting": frame(); pen.fillStyle = colour; rect(0, 0.5, 1, 0.5); break;
    case "starting":
      pen.fillStyle = colour;
      pen.beginPath();
      pen.moveTo(x, y);
      pen.lineTo(x + s, y + s / 2);
      pen.lineTo(x, y + s);
      pen.fill();
      break;
    case "paused": pen.fillStyle = colour; rect(0.08, 0, 0.32, 1); rect(0.6, 0, 0.32, 1); break;
    case "exited": pen.fillStyle = colour; rect(0.2, 0.2, 0.6, 0.6); break;
    case "faulted": full(); pen.strokeStyle = mark; cross(s * 0.18); break;
    case "killed": full(); pen.fillStyle = mark; rect(0.18, 0.4, 0.64, 0.2); break;
    case "refused": frame(); pen.strokeStyle = colour; pen.lineWidth = line; pen.beginPath(); pen.moveTo(x, y + s); pen.lineTo(x + s, y); pen.stroke(); break;
    case "lost": frame(); pen.strokeStyle = colour; cross(0); break;
    default: full();
  }
  pen.restore();
}

/** A small picture of a state, for a legend. */
export function swatch(canvas, state, size) {
  const points = Math.round(size * devicePixelRatio);
  canvas.width = canvas.height = points;
  square(canvas.getContext("2d"), state, 0, 0, points);
}

/** Makes an element. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
