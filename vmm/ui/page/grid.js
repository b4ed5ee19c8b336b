// Every guest, a square each, on a canvas. Only squares that change are drawn anew.

import { arrange, HEAD } from "./layout.js";
import { square, style } from "./look.js";
import { count } from "./format.js";
import { NOBODY } from "./model.js";

const FLASH = 350;
const DIM = 0.13;

export class Grid {
  groupBy = "cell";
  /** By slot, 1: fits what is searched for; null: nothing is. */
  fitting = null;
  cursor = -1;
  chosen = -1;
  boxes = [];
  pitch = 8;
  /** Left and top of each square, by slot, in points of the canvas. */
  left = new Int32Array(0);
  top = new Int32Array(0);
  flashing = new Map();

  constructor(canvas, model, { onHover, onOpen }) {
    Object.assign(this, { canvas, model, onHover, onOpen });
    this.pen = canvas.getContext("2d");
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.rings = { cursor: document.getElementById("cursor"), chosen: document.getElementById("chosen") };
    new ResizeObserver(() => this.arrange()).observe(canvas.parentElement);
    canvas.addEventListener("pointermove", (event) => this.onHover(this.at(event), event));
    canvas.addEventListener("pointerleave", () => this.onHover(-1));
    canvas.addEventListener("click", (event) => {
      const slot = this.at(event);
      if (slot < 0) return;
      this.moveTo(slot);
      this.onOpen(slot);
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.moveTo(-1));
  }

  /** Room for the grid: what the window has left beside the charts, but never so little that squares are hard to hit. */
  space() {
    const frame = this.canvas.parentElement;
    const used = frame.getBoundingClientRect().top + scrollY;
    const left = matchMedia("(min-width: 1021px)").matches ? innerHeight - used - 150 : innerHeight * 0.62;
    return { width: frame.clientWidth, height: Math.max(340, left) };
  }

  groups() {
    const { model } = this;
    const by = new Map();
    for (let slot = 0; slot < model.size; slot += 1) {
      if (model.state[slot] === NOBODY) continue;
      const key = this.groupBy === "cell" ? model.cell[slot] : model.owner[slot];
      const group = by.get(key);
      if (group) group.push(slot);
      else by.set(key, [slot]);
    }
    const groups = [...by].map(([key, slots]) => ({ key, slots: slots.sort((a, b) => model.id[a] - model.id[b]), label: this.label(key) }));
    // Owners differ much in size: the largest first, so that strips are even.
    return groups.sort(this.groupBy === "cell" ? (a, b) => a.key - b.key : (a, b) => b.slots.length - a.slots.length || a.key - b.key);
  }

  label(key) {
    if (this.groupBy === "owner") return [this.model.owners[key] ?? "", ""];
    const cell = this.model.cells.get(key);
    return [`Cell ${key}`, cell?.process ? `process ${cell.process}` : ""];
  }

  /** Places everybody anew. */
  arrange() {
    this.model.moved = false;
    this.model.changed = [];
    this.flashing.clear();
    const groups = this.groups();
    const { width, height } = this.space();
    if (!width) return;
    const found = arrange(groups.map((group) => group.slots.length), width, height);
    this.pitch = found.pitch;
    this.boxes = groups.map((group, at) => ({ ...group, ...found.boxes[at] }));
    this.ratio = devicePixelRatio;
    this.canvas.width = Math.round(width * this.ratio);
    this.canvas.height = Math.round(found.height * this.ratio);
    this.canvas.style.height = `${found.height}px`;
    if (this.left.length < this.model.size) {
      this.left = new Int32Array(this.model.id.length);
      this.top = new Int32Array(this.model.id.length);
    }
    for (const box of this.boxes) {
      box.slots.forEach((slot, at) => {
        this.left[slot] = Math.round((box.x + (at % box.columns) * this.pitch) * this.ratio);
        this.top[slot] = Math.round((box.y + HEAD + Math.floor(at / box.columns) * this.pitch) * this.ratio);
      });
    }
    this.paint();
  }

  /** Draws everything: after a new arrangement, another theme, another search. */
  paint() {
    this.points = Math.max(2, Math.floor(this.pitch * this.ratio) - Math.max(1, Math.round(this.ratio)));
    this.stamps = this.model.states.map((state) => this.stamp(state));
    this.flash = style("--flash");
    const { pen, canvas } = this;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    this.heads();
    for (const box of this.boxes) for (const slot of box.slots) this.draw(slot);
    this.place("cursor");
    this.place("chosen");
  }

  stamp(state) {
    const stamp = new OffscreenCanvas(this.points, this.points);
    square(stamp.getContext("2d"), state, 0, 0, this.points);
    return stamp;
  }

  heads() {
    const { pen, ratio } = this;
    const [text, faint] = [style("--text"), style("--faint")];
    pen.save();
    pen.scale(ratio, ratio);
    pen.direction = "ltr";
    pen.textBaseline = "alphabetic";
    for (const box of this.boxes) {
      const room = box.columns * this.pitch - 2;
      const [label, more] = box.label;
      pen.font = `600 11.5px ${style("--sans")}`;
      pen.fillStyle = text;
      const name = fit(pen, label, room);
      pen.fillText(name, box.x, box.y + 11);
      let x = box.x + pen.measureText(name).width + 6;
      pen.font = `11px ${style("--sans")}`;
      pen.fillStyle = faint;
      for (const part of [count(box.slots.length), more]) {
        const wide = pen.measureText(part).width;
        if (!part || x + wide > box.x + room) break;
        pen.fillText(part, x, box.y + 11);
        x += wide + 8;
      }
    }
    pen.restore();
  }

  draw(slot) {
    const { pen, points } = this;
    const [x, y] = [this.left[slot], this.top[slot]];
    pen.clearRect(x, y, points, points);
    const stamp = this.stamps[this.model.state[slot]];
    if (!stamp) return;
    if (this.fitting && !this.fitting[slot]) {
      pen.globalAlpha = DIM;
      pen.drawImage(stamp, x, y);
      pen.globalAlpha = 1;
    } else {
      pen.drawImage(stamp, x, y);
    }
  }

  /** Draws what has changed since the last time. Answers how many squares. */
  update(now) {
    const { changed } = this.model;
    this.model.changed = [];
    for (const slot of changed) {
      this.draw(slot);
      if (this.still.matches || (this.fitting && !this.fitting[slot])) continue;
      // For a moment what has changed is brighter.
      this.pen.fillStyle = this.flash;
      this.pen.fillRect(this.left[slot], this.top[slot], this.points, this.points);
      this.flashing.delete(slot);
      this.flashing.set(slot, now + FLASH);
    }
    for (const [slot, until] of this.flashing) {
      if (until > now) break;
      this.flashing.delete(slot);
      this.draw(slot);
    }
    return changed.length;
  }

  /** Who is under a pointer; -1 if nobody. */
  at({ offsetX, offsetY }) {
    for (const box of this.boxes) {
      const column = Math.floor((offsetX - box.x) / this.pitch);
      const row = Math.floor((offsetY - box.y - HEAD) / this.pitch);
      if (column >= 0 && column < box.columns && row >= 0 && row < box.rows) return box.slots[row * box.columns + column] ?? -1;
    }
    return -1;
  }

  /** The middle of somebody's square, from the window's corner. */
  where(id) {
    const slot = this.model.slots.get(id);
    if (slot === undefined) return null;
    const frame = this.canvas.getBoundingClientRect();
    const half = this.points / 2;
    return { x: frame.left + (this.left[slot] + half) / this.ratio, y: frame.top + (this.top[slot] + half) / this.ratio };
  }

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (steps[event.key]) this.step(...steps[event.key]);
    else if (event.key === "Home" || event.key === "End") this.moveTo(this.ends(event.key === "Home"));
    else if ((event.key === "Enter" || event.key === " ") && this.cursor >= 0) this.onOpen(this.cursor);
    else return;
    event.preventDefault();
  }

  ends(first) {
    const box = this.boxes.at(first ? 0 : -1);
    return box?.slots.at(first ? 0 : -1) ?? -1;
  }

  /** To the next square in a direction, over the edge of a group into the next one; with a search, to the next that fits. */
  step(right, down) {
    if (this.cursor < 0) return this.moveTo(this.chosen >= 0 ? this.chosen : this.firstFitting());
    const half = this.pitch / 2;
    let x = this.left[this.cursor] / this.ratio + half, y = this.top[this.cursor] / this.ratio + half;
    const [width, height] = [this.canvas.width / this.ratio, this.canvas.height / this.ratio];
    for (;;) {
      x += right * this.pitch;
      y += down * this.pitch;
      if (x < 0 || y < 0 || x > width || y > height) return;
      const slot = this.at({ offsetX: x, offsetY: y });
      if (slot >= 0 && slot !== this.cursor && (!this.fitting || this.fitting[slot])) return this.moveTo(slot);
    }
  }

  firstFitting() {
    if (!this.fitting) return this.ends(true);
    for (const box of this.boxes) for (const slot of box.slots) if (this.fitting[slot]) return slot;
    return -1;
  }

  moveTo(slot) {
    this.cursor = slot;
    this.place("cursor");
    const box = this.rings.cursor;
    if (slot >= 0) box.scrollIntoView({ block: "nearest" });
    this.onHover(slot, null);
  }

  choose(slot) {
    this.chosen = slot;
    this.place("chosen");
  }

  place(which) {
    const ring = this.rings[which];
    const slot = this[which];
    ring.hidden = slot < 0 || this.model.state[slot] === NOBODY;
    if (ring.hidden) return;
    const size = this.points / this.ratio;
    ring.style.width = ring.style.height = `${size + 6}px`;
    ring.style.transform = `translate(${this.left[slot] / this.ratio - 3}px, ${this.top[slot] / this.ratio - 3}px)`;
  }
}

/** As much of a text as there is room for. */
function fit(pen, text, room) {
  if (pen.measureText(text).width <= room) return text;
  while (text && pen.measureText(`${text}…`).width > room) text = text.slice(0, -1);
  return `${text}…`;
}
