// How many guests are in each state. Choosing states shows only those.

import { make, swatch } from "./look.js";
import { count } from "./format.js";

export class Legend {
  /** Names of the states that were chosen. */
  chosen = new Set();
  entries = [];

  constructor(root, onChange) {
    Object.assign(this, { root, onChange });
  }

  begin(states) {
    if (this.entries.length === states.length) return;
    this.entries = states.map((state) => {
      const picture = make("canvas");
      const number = make("span", { className: "count", textContent: "0" });
      const button = make("button", { type: "button" }, picture, make("span", { className: "name", textContent: state }), number);
      button.dataset.state = state;
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => this.toggle(state, button));
      return { state, button, picture, number, shown: -1 };
    });
    this.root.replaceChildren(...this.entries.map(({ button }) => button));
    this.paint();
  }

  toggle(state, button) {
    if (!this.chosen.delete(state)) this.chosen.add(state);
    button.setAttribute("aria-pressed", String(this.chosen.has(state)));
    this.onChange();
  }

  clear() {
    this.chosen.clear();
    for (const { button } of this.entries) button.setAttribute("aria-pressed", "false");
  }

  paint() {
    for (const { state, picture } of this.entries) swatch(picture, state, 14);
  }

  update(counts) {
    this.entries.forEach((entry, at) => {
      const n = counts[at];
      if (n === entry.shown) return;
      entry.shown = n;
      entry.number.textContent = count(n);
      entry.button.dataset.count = n;
      entry.button.classList.toggle("none", n === 0);
    });
  }
}
