// One guest: everything that is known, and what it writes. Text is only ever set as text.

import { make, swatch } from "./look.js";
import { bytes, fact } from "./format.js";

const PERIOD = 250;
/** Most characters of a console that are kept here. */
const KEPT = 200_000;

/** In which states an action makes sense; the daemon has the last word. */
const ACTIONS = {
  start: ["exited", "faulted", "killed", "refused", "lost"],
  stop: ["waiting", "restarting", "starting", "running", "paused"],
  kill: ["waiting", "restarting", "starting", "running", "paused"],
  pause: ["running"],
  resume: ["paused"],
};

export class Detail {
  id = null;

  constructor(root, { key, onClose, writable }) {
    Object.assign(this, { root, key, onClose, writable });
    root.addEventListener("keydown", (event) => event.key === "Escape" && this.close());
  }

  open(id, name) {
    if (this.id === id) return;
    this.stop();
    this.id = id;
    this.from = null;
    this.kept = 0;
    this.following = true;
    this.shape = "";
    this.build(id, name);
    this.root.hidden = false;
    this.parts.close.focus({ preventScroll: true });
    this.poll();
  }

  close() {
    if (this.id === null) return;
    this.stop();
    this.id = null;
    this.root.hidden = true;
    this.onClose();
  }

  stop() {
    clearTimeout(this.timer);
    this.asking?.abort();
  }

  build(id, name) {
    const close = make("button", { className: "close", type: "button", textContent: "✕", title: "Close (Esc)", onclick: () => this.close() });
    close.setAttribute("aria-label", "Close");
    const title = make("h2", { textContent: name });
    const picture = make("canvas"), state = make("span");
    const chip = make("span", { className: "chip" }, picture, state);
    const sub = make("p", { className: "sub", textContent: `#${id}` });
    const said = make("span", { className: "said" });
    said.setAttribute("role", "alert");
    const actions = this.writable() ? make("div", { className: "actions" }, ...Object.keys(ACTIONS).map((action) => this.button(action)), said) : "";
    const facts = make("div", { className: "facts" });
    const report = make("pre", { className: "report", hidden: true });
    const written = make("span");
    const follow = make("button", { type: "button", textContent: "Following", onclick: () => this.follow(!this.following) });
    follow.setAttribute("aria-pressed", "true");
    const log = make("pre", { className: "console", tabIndex: 0 });
    log.setAttribute("aria-label", "Console");
    log.addEventListener("scroll", () => {
      const end = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
      if (end !== this.following) this.follow(end);
    });
    const bar = make("div", { className: "console-bar" }, make("b", { textContent: "Console" }), written, follow);
    this.root.replaceChildren(
      make("div", { className: "head" }, make("div", { className: "title" }, title, chip, close), sub, actions),
      make("div", { className: "body" }, facts, report, bar, log),
    );
    this.parts = { close, title, picture, state, sub, said, facts, report, written, follow, log };
    this.buttons = [...this.root.querySelectorAll(".actions button")];
  }

  button(action) {
    const name = action[0].toUpperCase() + action.slice(1);
    const button = make("button", { type: "button", textContent: name, disabled: true });
    button.dataset.action = action;
    const calm = () => {
      button.classList.remove("sure");
      button.textContent = name;
    };
    button.addEventListener("blur", calm);
    button.addEventListener("click", () => {
      // What cannot be taken back is asked for twice.
      if (action === "kill" && !button.classList.contains("sure")) {
        button.classList.add("sure");
        button.textContent = "Really kill";
        return;
      }
      calm();
      this.act(action);
    });
    return button;
  }

  async act(action) {
    const { said } = this.parts;
    said.textContent = "";
    try {
      const answer = await fetch(`api/guests/${this.id}/${action}`, { method: "POST", headers: { "X-Foraker-Key": this.key() } });
      if (!answer.ok) said.textContent = (await answer.text()).trim();
    } catch {
      said.textContent = "the daemon does not answer";
    }
  }

  follow(on) {
    this.following = on;
    const { follow, log } = this.parts;
    follow.textContent = on ? "Following" : "Follow";
    follow.setAttribute("aria-pressed", String(on));
    if (on) log.scrollTop = log.scrollHeight;
  }

  async poll() {
    const { id } = this;
    if (document.visibilityState === "visible") {
      this.asking = new AbortController();
      try {
        const query = this.from === null ? "" : `?from=${this.from}`;
        const answer = await fetch(`api/guests/${id}${query}`, { signal: this.asking.signal });
        if (this.id !== id) return;
        if (answer.ok) this.show(await answer.json());
        else if (answer.status === 404) this.gone();
      } catch {
        // The stream says that the daemon is away.
      }
    }
    if (this.id === id) this.timer = setTimeout(() => this.poll(), PERIOD);
  }

  gone() {
    this.parts.state.textContent = "gone";
    for (const button of this.buttons) button.disabled = true;
  }

  show(told) {
    if (this.id !== told.id) return;
    const { title, picture, state, sub, facts, report } = this.parts;
    set(title, told.name);
    if (state.textContent !== told.state) {
      state.textContent = told.state;
      swatch(picture, told.state, 12);
      for (const button of this.buttons) button.disabled = !ACTIONS[button.dataset.action].includes(told.state);
    }
    set(sub, `#${told.id} · owner ${told.owner} · cell ${told.cell}`);
    report.hidden = !told.report;
    set(report, told.report ?? "");
    this.tell(facts, told.facts);
    if (told.console) this.write(told.console);
  }

  tell(root, facts) {
    const shape = JSON.stringify(facts.map(({ group, name }) => [group, name]));
    if (shape !== this.shape) {
      this.shape = shape;
      this.values = [];
      const groups = new Map();
      for (const told of facts) {
        const value = make("dd");
        this.values.push(value);
        const rows = groups.get(told.group) ?? groups.set(told.group, []).get(told.group);
        rows.push({ told, value });
      }
      root.replaceChildren(...[...groups].map(([group, rows]) => {
        const wide = rows.some(({ told }) => told.kind === "text" && told.value.length > 18);
        const list = make("dl", {}, ...rows.flatMap(({ told, value }) => [make("dt", { textContent: told.name }), value]));
        return make("section", { className: wide ? "wide" : "" }, make("h3", { textContent: group }), list);
      }));
    }
    facts.forEach((told, at) => set(this.values[at], fact(told)));
  }

  write({ from, next, text }) {
    const { log, written } = this.parts;
    // An answer that was overtaken.
    if (this.from !== null && next < this.from) return;
    const lost = from - (this.from ?? 0);
    this.from = next;
    set(written, `${bytes(next)} written`);
    if (lost > 0) log.append(make("span", { className: "gap", textContent: `… ${bytes(lost)} before this are not kept …\n` }));
    if (!text) return;
    log.append(text);
    this.kept += text.length;
    while (this.kept > KEPT && log.childNodes.length > 1) {
      this.kept -= log.firstChild.textContent.length;
      log.firstChild.remove();
    }
    if (this.following) log.scrollTop = log.scrollHeight;
  }
}

const set = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};
