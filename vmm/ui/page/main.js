// The page: what is heard is taken down at once and drawn at the next frame.

import { Charts } from "./charts.js";
import { Detail } from "./detail.js";
import { fits, parse } from "./filter.js";
import { count } from "./format.js";
import { Grid } from "./grid.js";
import { Legend } from "./legend.js";
import { make, swatch } from "./look.js";
import { Model, NOBODY } from "./model.js";
import { Stages } from "./stages.js";
import { Stream } from "./stream.js";

/** Guests that a search lists. */
const LISTED = 60;
/** Milliseconds between two arrangements of the whole grid, and two looks through all guests for a search. */
const REARRANGE = 1000;
const SEARCH = 500;

const find = (id) => document.getElementById(id);
const key = takeKey();
const model = new Model();
const legend = new Legend(find("legend"), () => search());
const grid = new Grid(find("grid"), model, { onHover: hover, onOpen: open });
const charts = new Charts(find("charts"));
const stages = new Stages(find("graph"));
const detail = new Detail(find("detail"), { key: () => key, writable: () => model.writable, onClose: closed });
const page = { model, grid, drawn: 0 };
// To look at from the browser's console.
globalThis.foraker = page;

find("where").textContent = location.host;

/** The key is in the address only as it was printed: it is not left there to be copied along. */
function takeKey() {
  const given = new URLSearchParams(location.hash.slice(1));
  const key = given.get("key") ?? sessionStorage.getItem("key") ?? "";
  if (given.has("key")) {
    sessionStorage.setItem("key", key);
    given.delete("key");
    history.replaceState(null, "", `${location.pathname}${given.size ? `#${given}` : ""}`);
  }
  return key;
}

// --- What is heard

let frame = 0, heard = 0, words = null, arranged = -Infinity, searched = 0, begun = false;

function draw() {
  if (!frame) frame = requestAnimationFrame(show);
}

const stream = new Stream({
  onEverything(all) {
    model.everything(all);
    legend.begin(model.states);
    stages.begin(model.graph);
    const mode = find("mode");
    mode.hidden = false;
    mode.textContent = model.writable ? (key ? "actions on" : "actions need the printed address") : "read-only";
    arranged = -Infinity;
    begun = true;
    heard += 1;
    search();
    draw();
    openFromAddress();
  },
  onDifference(news) {
    if (!begun) return;
    model.difference(news);
    heard += 1;
    draw();
  },
  onState(state) {
    const text = { live: "", connecting: "connecting", lost: "no answer", resting: "resting" }[state];
    if (find("live").dataset.state === state) return;
    find("live").dataset.state = state;
    document.body.classList.toggle("lost", state === "lost");
    if (text) find("live-text").textContent = text;
  },
});

function show(now) {
  frame = 0;
  if (!begun) return;
  if (model.moved && now - arranged > REARRANGE) {
    arranged = now;
    search();
    grid.arrange();
    if (!page.drawn) performance.mark("foraker-guests");
  } else {
    if (words && model.changed.length && now - searched > SEARCH) search();
    grid.update(now);
  }
  const { moment } = model;
  if (heard !== page.heard) {
    page.heard = heard;
    page.drawn += 1;
    legend.update(moment.counts);
    find("total").textContent = count(moment.counts.reduce((a, b) => a + b, 0));
    stages.update(moment.stages);
    if (charts.take(moment)) charts.paint();
    find("beyond").hidden = !moment.beyond;
    if (moment.beyond) find("beyond").textContent = `${count(moment.beyond)} more are counted above and have no square here.`;
    const empty = model.slots.size === 0;
    find("empty").hidden = !empty;
    if (empty) find("empty").textContent = "No guests yet: `vmm run` starts some.";
    if (tipped >= 0) tip(tipped);
  }
}

let before = { drawn: 0, time: performance.now() };
setInterval(() => {
  const time = performance.now();
  const pace = ((page.drawn - before.drawn) * 1000) / (time - before.time);
  before = { drawn: page.drawn, time };
  if (find("live").dataset.state === "live") find("live-text").textContent = `live, ${pace.toFixed(0)} updates/s`;
}, 2000);

// --- Search

/** Looks for who fits the words and the chosen states. */
function search() {
  searched = performance.now();
  words = parse(find("query").value);
  const states = legend.chosen.size ? model.states.map((state) => legend.chosen.has(state)) : null;
  const was = grid.fitting;
  grid.fitting = null;
  if (states) words ??= [];
  if (words) {
    const fitting = new Uint8Array(model.id.length);
    const list = [];
    let found = 0;
    for (let slot = 0; slot < model.size; slot += 1) {
      if (model.state[slot] === NOBODY || (states && !states[model.state[slot]]) || !fits(words, model, slot)) continue;
      fitting[slot] = 1;
      found += 1;
      if (list.length < LISTED) list.push(slot);
    }
    grid.fitting = fitting;
    results(found, list);
  } else {
    find("results").hidden = true;
    listed = "";
  }
  if ((was || grid.fitting) && !same(was, grid.fitting)) grid.paint();
}

const same = (a, b) => a && b && a.length === b.length && a.every((fit, slot) => fit === b[slot]);

let listed = "";

function results(found, list) {
  find("results").hidden = false;
  const rest = found > list.length ? `; the first ${list.length}:` : "";
  find("results-title").textContent = `${count(found)} found${rest}`;
  const shape = list.map((slot) => `${model.id[slot]} ${model.state[slot]}`).join();
  // Whoever is about to choose one finds it where it was.
  if (shape === listed || find("results-list").matches(":hover")) return;
  listed = shape;
  const focused = document.activeElement?.dataset?.id;
  find("results-list").replaceChildren(...list.map((slot) => {
    const picture = make("canvas");
    swatch(picture, model.stateOf(slot), 12);
    picture.style.width = picture.style.height = "12px";
    const id = model.id[slot];
    const button = make("button", { type: "button", onclick: () => openId(id) }, picture, make("bdi", { textContent: model.name[slot] }), make("small", { textContent: model.ownerOf(slot) }));
    button.dataset.id = id;
    return make("li", {}, button);
  }));
  if (focused) find("results-list").querySelector(`[data-id="${focused}"]`)?.focus();
}

find("query").addEventListener("input", () => search());
find("query").addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    event.target.value = "";
    legend.clear();
    search();
  } else if (event.key === "Enter") {
    find("results-list").querySelector("button")?.click();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.matches("input")) {
    event.preventDefault();
    find("query").focus();
  } else if (event.key === "Escape" && !event.target.matches("input")) {
    detail.close();
  }
});
for (const input of document.querySelectorAll("input[name=group]")) {
  input.addEventListener("change", () => {
    grid.groupBy = input.value;
    grid.arrange();
  });
}

// --- One guest

let tipped = -1;

function hover(slot, event) {
  tipped = slot;
  const box = find("tip");
  if (slot < 0) {
    box.hidden = true;
    return;
  }
  tip(slot);
  box.hidden = false;
  const at = event ? { x: event.clientX, y: event.clientY } : grid.where(model.id[slot]);
  const x = at.x + 14 + box.offsetWidth > innerWidth ? at.x - 14 - box.offsetWidth : at.x + 14;
  const y = at.y + 18 + box.offsetHeight > innerHeight ? at.y - 12 - box.offsetHeight : at.y + 18;
  box.style.transform = `translate(${Math.max(4, x)}px, ${Math.max(4, y)}px)`;
  if (!event) find("said").textContent = `${model.name[slot]}, ${model.stateOf(slot)}, owner ${model.ownerOf(slot)}, cell ${model.cell[slot]}`;
}

function tip(slot) {
  const lines = [`${model.stateOf(slot)}`, `owner ${model.ownerOf(slot)}`, `cell ${model.cell[slot]} · #${model.id[slot]}`];
  find("tip").replaceChildren(make("b", { textContent: model.name[slot] }), ...lines.map((text) => make("span", { textContent: text })));
}

function open(slot) {
  openId(model.id[slot]);
}

function openId(id) {
  const slot = model.slots.get(id);
  grid.choose(slot ?? -1);
  find("tip").hidden = true;
  detail.open(id, slot === undefined ? "" : model.name[slot]);
  history.replaceState(null, "", `#guest=${id}`);
}

function closed() {
  grid.choose(-1);
  history.replaceState(null, "", location.pathname);
  find("grid").focus({ preventScroll: true });
}

function openFromAddress() {
  const id = Number(new URLSearchParams(location.hash.slice(1)).get("guest"));
  if (id && model.slots.has(id)) openId(id);
}
addEventListener("hashchange", openFromAddress);

// --- Another theme, another screen

function repaint() {
  legend.paint();
  grid.arrange();
  charts.paint();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
addEventListener("resize", () => grid.arrange());
