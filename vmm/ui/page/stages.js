// The stages as SEDA draws them: a queue before each, arrows between them. Wide windows have the path from left to right, narrow ones from top to bottom.

import { short, things, rate } from "./format.js";

const SLOTS = 8;
const BOX = { width: 200, height: 68 };
/** Narrow boxes have a line more. */
const NARROW = { width: 170, height: 84 };

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const set = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

export class Stages {
  graph = { stages: [], edges: [] };
  stages = [];
  edges = [];

  constructor(root) {
    this.root = root;
    this.beside = document.getElementById("guests");
    const sizes = new ResizeObserver(() => this.build());
    sizes.observe(root.parentElement);
    sizes.observe(this.beside);
  }

  begin(graph) {
    this.graph = graph;
    this.build();
  }

  build() {
    const { graph, root } = this;
    const width = root.parentElement.clientWidth;
    if (!graph.stages.length || !width) return;
    const upright = width < 760;
    const place = ({ column, row }) => (upright ? { x: row, y: column } : { x: column, y: row });
    const cells = graph.stages.map(place);
    const [across, down] = ["x", "y"].map((axis) => 1 + Math.max(...cells.map((cell) => cell[axis])));
    const side = upright ? 26 : 20;
    const head = upright ? 8 : 30;
    const room = Math.min(BOX.width, (width - side - 14 - (across - 1) * 22) / across);
    const box = { width: room, height: (room < NARROW.width ? NARROW : BOX).height };
    const stepX = across > 1 ? (width - side - 14 - box.width) / (across - 1) : 0;
    let stepY = box.height + (upright ? 26 : 34);
    // Beside the guests there is as much height as they take.
    const beside = this.beside.offsetTop === root.parentElement.offsetTop;
    const high = beside ? this.beside.clientHeight - (root.getBoundingClientRect().top - root.parentElement.getBoundingClientRect().top) - 4 : 0;
    if (down > 1) stepY = Math.max(stepY, Math.min(box.height + 120, (high - head - box.height - 14) / (down - 1)));
    const boxes = cells.map(({ x, y }) => ({ cx: x, cy: y, x: side + x * stepX, y: head + y * stepY, ...box }));
    const height = head + (down - 1) * stepY + box.height + 14;
    root.setAttribute("height", height);
    root.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const has = (from, to) => graph.edges.some((edge) => edge.from === from && edge.to === to);
    this.edges = graph.edges.map(({ from, to }) => {
      const { path, end, angle } = route(boxes[from], boxes[to], has(to, from), upright);
      const line = svg("path", { class: "edge", d: path });
      const tip = svg("path", { class: "tip", d: "M0 0L-8 -4.5V4.5Z", transform: `translate(${end.x} ${end.y}) rotate(${angle})` });
      return { from, to, line, tip };
    });
    this.stages = graph.stages.map((stage, at) => this.stage(stage, boxes[at]));
    root.replaceChildren(...this.edges.flatMap(({ line, tip }) => [line, tip]), ...this.stages.map(({ group }) => group));
    if (this.last) this.update(this.last);
  }

  stage({ name, what }, box) {
    const group = svg("g", { transform: `translate(${box.x} ${box.y})` });
    const slots = [];
    group.append(svg("rect", { class: "box", width: box.width, height: box.height, rx: 8 }));
    // The queue: a ladder that fills from the right, where the stage takes from it.
    for (let at = 0; at < SLOTS; at += 1) {
      const slot = svg("rect", { class: "slot", x: 10 + at * 4.4, y: 10, width: 3.2, height: 13, rx: 1 });
      slots.unshift(slot);
      group.append(slot);
    }
    const last = box.width < NARROW.width ? { x: 10, y: 74 } : { x: box.width - 10, y: 58, "text-anchor": "end" };
    const texts = {
      title: svg("title"),
      name: svg("text", { class: "name", x: 15 + SLOTS * 4.4, y: 21 }, name),
      queue: svg("text", { class: "soft", x: 10, y: 41 }),
      rate: svg("text", { class: "value", x: 10, y: 58 }),
      refused: svg("text", { class: "soft", ...last }),
    };
    group.append(...Object.values(texts));
    return { group, slots, texts, name, what };
  }

  update(loads) {
    this.last = loads;
    this.stages.forEach(({ group, slots, texts, name, what }, at) => {
      const [queue, bound, passed, refusing, refused] = loads[at] ?? [];
      const full = queue && bound ? Math.min(SLOTS, Math.ceil((queue / bound) * SLOTS)) : 0;
      slots.forEach((slot, n) => slot.classList.toggle("full", n < full));
      set(texts.queue, queue == null ? "queue not known" : `queue ${short(queue)}${bound == null ? "" : ` of ${short(bound)}`}`);
      set(texts.rate, rate(passed));
      // How many at all; while there are more, how many a second.
      set(texts.refused, refused == null ? "" : `refused ${refusing > 0 ? rate(refusing) : things(refused)}`);
      set(texts.title, `${name}: ${what}. Passed ${rate(passed)}, refused ${things(refused)}.`);
      texts.refused.classList.toggle("bad", refusing > 0);
      group.classList.toggle("hot", full >= SLOTS - 1);
    });
    for (const { from, to, line } of this.edges) {
      // As thick as what flows through its lesser end is much, by powers of ten.
      const flow = Math.min(loads[from]?.[2] ?? 0, loads[to]?.[2] ?? 0);
      line.setAttribute("stroke-width", (1.2 + Math.log10(1 + flow) * 0.45).toFixed(1));
    }
  }
}

/** A line from one box to another; `both`: there is one back, so that each keeps to its side. */
function route(a, b, both, upright) {
  const mid = (box) => ({ x: box.x + box.width / 2, y: box.y + box.height / 2 });
  const [from, to] = [mid(a), mid(b)];
  const along = upright ? b.cy - a.cy : b.cx - a.cx;
  const same = upright ? a.cx === b.cx : a.cy === b.cy;
  const tipped = (path, end, angle) => ({ path, end, angle });
  if (same && Math.abs(along) === 1) {
    const off = both ? (along > 0 ? -9 : 9) : 0;
    if (upright) {
      const x = from.x - off, [y1, y2] = along > 0 ? [a.y + a.height, b.y] : [a.y, b.y + b.height];
      return tipped(`M${x} ${y1}V${y2 - Math.sign(along) * 6}`, { x, y: y2 }, along > 0 ? 90 : -90);
    }
    const y = from.y + off, [x1, x2] = along > 0 ? [a.x + a.width, b.x] : [a.x, b.x + b.width];
    return tipped(`M${x1} ${y}H${x2 - Math.sign(along) * 6}`, { x: x2, y }, along > 0 ? 0 : 180);
  }
  if (same && upright) {
    const x = Math.min(a.x, b.x), out = x - 18, end = { x, y: to.y };
    return tipped(`M${x} ${from.y}C${out} ${from.y} ${out} ${from.y} ${out} ${from.y - Math.sign(-along) * 20}V${to.y + Math.sign(-along) * 20}C${out} ${to.y} ${out} ${to.y} ${x - 6} ${to.y}`, end, 0);
  }
  if (same) {
    const y = Math.min(a.y, b.y), out = y - 20, s = Math.sign(along), end = { x: to.x, y };
    return tipped(`M${from.x} ${y}C${from.x} ${out} ${from.x} ${out} ${from.x + s * 26} ${out}H${to.x - s * 26}C${to.x} ${out} ${to.x} ${out} ${to.x} ${y - 6}`, end, 90);
  }
  if (upright) {
    const s = Math.sign(b.cx - a.cx), x1 = s > 0 ? a.x + a.width : a.x, x2 = s > 0 ? b.x : b.x + b.width, half = (x1 + x2) / 2;
    const y2 = to.y + Math.sign(a.cy - b.cy) * 12;
    return tipped(`M${x1} ${from.y}C${half} ${from.y} ${half} ${y2} ${x2 - s * 6} ${y2}`, { x: x2, y: y2 }, s > 0 ? 0 : 180);
  }
  const s = Math.sign(b.cy - a.cy), y1 = s > 0 ? a.y + a.height : a.y, y2 = s > 0 ? b.y : b.y + b.height, half = (y1 + y2) / 2;
  const x2 = to.x + Math.sign(a.cx - b.cx) * 40;
  return tipped(`M${from.x} ${y1}C${from.x} ${half} ${x2} ${half} ${x2} ${y2 - s * 6}`, { x: x2, y: y2 }, s > 0 ? 90 : -90);
}
