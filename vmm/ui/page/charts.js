// The last minutes, as lines. What is drawn is kept here alone: a page that is opened anew begins anew.

import { make, style } from "./look.js";
import * as format from "./format.js";

const MINUTE = 60_000;
/** Minutes that are kept, and shown when there is as much. */
const SPANS = [1, 2, 5];
const KEPT = 5 * MINUTE;
const STEP = 500;
/** A longer silence is a gap in the line. */
const GAP = 2500;

const CHARTS = [
  { title: "Throughput", series: [["in", (m) => m.bytes_in], ["out", (m) => m.bytes_out]], format: format.bits, base: 8 },
  { title: "Exits", series: [["", (m) => m.exits]], format: format.rate },
  { title: "Memory", series: [["", (m) => m.memory]], format: format.bytes, binary: true, limit: (m) => m.memory_budget },
  { title: "Queues", series: [["events", (m) => sum(m.stages, 0)], ["guests", (m) => m.counts[0]]], format: format.things },
  { title: "Refused", series: [["", (m) => sum(m.stages, 3)]], format: format.rate },
  { title: "State changes", series: [["", (m) => m.changes]], format: format.rate },
];

function sum(stages, at) {
  const known = stages.map((stage) => stage[at]).filter((n) => n != null);
  return known.length ? known.reduce((a, b) => a + b, 0) : null;
}

/** A round number not below n, in a unit's steps. */
function ceiling(n, { binary, base = 1 }) {
  if (!(n > 0)) return binary ? 1024 : 1;
  if (binary) {
    const unit = 1024 ** Math.floor(Math.log(n) / Math.log(1024));
    return ceiling(n / unit, {}) * unit;
  }
  n *= base;
  const unit = 10 ** Math.floor(Math.log10(n));
  return ([1, 2, 4, 6, 8, 10].find((step) => step * unit >= n * 0.9999) * unit) / base;
}

export class Charts {
  times = [];
  last = -Infinity;

  constructor(root) {
    this.charts = CHARTS.map((spec) => new Chart(spec, root));
    new ResizeObserver(() => this.paint()).observe(root);
  }

  /** Takes down a moment; answers whether there is something to draw. */
  take(moment) {
    // A clock that was put back would draw lines to the left.
    if (moment.time < this.last) this.times = [], this.charts.forEach((chart) => chart.forget());
    else if (moment.time - this.last < STEP) return false;
    this.last = moment.time;
    this.times.push(moment.time);
    let old = 0;
    while (this.times[old] < moment.time - KEPT) old += 1;
    this.times.splice(0, old);
    for (const chart of this.charts) chart.take(moment, old);
    return true;
  }

  paint() {
    const minutes = SPANS.find((span) => this.last - this.times[0] <= span * MINUTE) ?? SPANS.at(-1);
    for (const chart of this.charts) chart.paint(this.times, this.last, minutes);
  }
}

class Chart {
  limit = null;

  constructor(spec, root) {
    this.spec = spec;
    this.lines = spec.series.map(() => []);
    this.canvas = make("canvas");
    this.canvas.setAttribute("role", "img");
    this.numbers = spec.series.map(() => make("b", { textContent: "…" }));
    const several = spec.series.length > 1;
    const labels = spec.series.map(([label], at) => {
      // The word is underlined as its line is drawn.
      const key = several ? [make("i", { className: at ? "second" : "", textContent: label }), " "] : [];
      return make("span", {}, ...key, this.numbers[at]);
    });
    this.note = make("span");
    const caption = make("figcaption", {}, make("b", { textContent: spec.title }), make("span", { className: "now" }, ...labels, this.note));
    // In a box of its own, so that its size in points never moves the page.
    const plot = make("div", { className: "plot" }, this.canvas);
    root.append(make("figure", { className: several ? "several" : "" }, caption, plot));
  }

  forget() {
    for (const line of this.lines) line.length = 0;
  }

  take(moment, old) {
    const values = this.spec.series.map(([, value]) => value(moment));
    values.forEach((value, at) => {
      this.lines[at].splice(0, old);
      this.lines[at].push(value ?? NaN);
      const text = this.spec.format(value);
      if (this.numbers[at].textContent !== text) this.numbers[at].textContent = text;
    });
    this.limit = this.spec.limit?.(moment) ?? null;
    const note = this.limit ? `of ${this.spec.format(this.limit)}` : "";
    if (this.note.textContent !== note) this.note.textContent = note;
    const spoken = this.spec.series.map(([label], at) => `${label} ${this.spec.format(values[at])}`).join(", ");
    this.canvas.setAttribute("aria-label", `${this.spec.title}: ${spoken}`);
  }

  paint(times, now, minutes) {
    const { canvas, spec } = this;
    const [width, height, ratio] = [canvas.clientWidth, canvas.clientHeight, devicePixelRatio];
    if (!width || !height) return;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    let most = 0;
    for (const line of this.lines) for (const value of line) if (value > most) most = value;
    const top = ceiling(most, spec);
    pen.font = `10px ${style("--sans")}`;
    const labels = [0, 0.5, 1].map((part) => (part ? spec.format(top * part) : "0"));
    const left = Math.ceil(Math.max(...labels.map((label) => pen.measureText(label).width))) + 6;
    const area = { left, right: width - 4, top: 6, bottom: height - 16 };
    const x = (time) => area.right - ((now - time) / (minutes * MINUTE)) * (area.right - area.left);
    const y = (value) => area.bottom - (value / top) * (area.bottom - area.top);
    this.axes(pen, area, labels, x, now, minutes);
    this.lines.forEach((line, at) => this.line(pen, area, times, line, at, x, y));
    if (this.limit && this.limit <= top) {
      pen.strokeStyle = style("--bad");
      pen.setLineDash([2, 3]);
      pen.beginPath();
      pen.moveTo(area.left, y(this.limit));
      pen.lineTo(area.right, y(this.limit));
      pen.stroke();
      pen.setLineDash([]);
    }
  }

  axes(pen, area, labels, x, now, minutes) {
    pen.fillStyle = style("--faint");
    pen.strokeStyle = style("--line");
    pen.lineWidth = 1;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    labels.forEach((label, at) => {
      const y = Math.round(area.bottom - (at / 2) * (area.bottom - area.top)) + 0.5;
      pen.beginPath();
      pen.moveTo(area.left, y);
      pen.lineTo(area.right, y);
      pen.stroke();
      pen.fillText(label, area.left - 5, y);
    });
    pen.textBaseline = "alphabetic";
    // A tick for each minute, or each half of the only one.
    const step = minutes === 1 ? 0.5 : 1;
    const wide = area.right - area.left > (minutes === 1 ? 112 : 30 * minutes);
    for (let ago = 0; ago <= minutes; ago += step) {
      const at = Math.round(x(now - ago * MINUTE)) + 0.5;
      pen.beginPath();
      pen.moveTo(at, area.bottom);
      pen.lineTo(at, area.bottom + 3);
      pen.stroke();
      if (!wide && ago % minutes) continue;
      pen.textAlign = ago === 0 ? "right" : ago === minutes ? "left" : "center";
      const text = minutes === 1 ? `−${ago * 60} s` : `−${ago}${ago === minutes ? " min" : ""}`;
      pen.fillText(ago ? text : "now", at, area.bottom + 13);
    }
  }

  line(pen, area, times, line, at, x, y) {
    const colour = style(`--line-${at + 1}`);
    pen.strokeStyle = colour;
    pen.lineWidth = 1.6;
    pen.lineJoin = "round";
    pen.setLineDash(at ? [4, 3] : []);
    const fill = this.lines.length === 1;
    let from = -1;
    const end = (to) => {
      if (from < 0) return;
      pen.beginPath();
      for (let i = from; i < to; i += 1) pen.lineTo(x(times[i]), y(line[i]));
      pen.stroke();
      if (fill) {
        pen.lineTo(x(times[to - 1]), area.bottom);
        pen.lineTo(x(times[from]), area.bottom);
        pen.globalAlpha = 0.13;
        pen.fillStyle = colour;
        pen.fill();
        pen.globalAlpha = 1;
      }
      from = -1;
    };
    for (let i = 0; i < line.length; i += 1) {
      if (Number.isNaN(line[i])) end(i);
      else if (from >= 0 && times[i] - times[i - 1] > GAP) end(i), (from = i);
      else if (from < 0) from = i;
    }
    end(line.length);
    pen.setLineDash([]);
  }
}
