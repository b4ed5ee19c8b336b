// What the page knows: an array for each property of a guest, by slot. `src/message.rs` is the other side.

export const NOBODY = 255;

export class Model {
  states = [];
  writable = false;
  graph = { stages: [], edges: [] };
  cells = new Map();
  owners = [];
  moment = null;
  /** Slots in use or not; everything below is by slot. */
  size = 0;
  id = new Float64Array(0);
  state = new Uint8Array(0);
  cell = new Uint16Array(0);
  owner = new Uint32Array(0);
  name = [];
  slots = new Map();
  /** Slots whose state changed since somebody looked here. */
  changed = [];
  /** Whether guests came, went or moved since somebody looked here. */
  moved = false;

  everything(all) {
    this.states = all.states;
    this.writable = all.writable;
    this.graph = all.graph;
    this.setCells(all.cells);
    this.owners = all.owners;
    this.name = [];
    this.slots.clear();
    this.size = 0;
    this.room(all.slots.length);
    this.size = all.slots.length;
    let id = 0, name = "", at = 0;
    for (let slot = 0; slot < this.size; slot += 1) {
      const letter = all.slots.charCodeAt(slot) - 97;
      if (letter < 0) {
        this.state[slot] = NOBODY;
        continue;
      }
      id += all.ids[at];
      name = name.slice(0, all.common[at]) + all.names[at];
      this.set(slot, id, letter, all.cell[at], all.owner[at], name);
      at += 1;
    }
    this.changed = [];
    this.moved = true;
    this.moment = all.moment;
  }

  difference(news) {
    if (news.cells) this.setCells(news.cells), (this.moved = true);
    for (const [number, name] of news.owners ?? []) this.owners[number] = name;
    for (const slot of news.gone ?? []) {
      this.slots.delete(this.id[slot]);
      this.state[slot] = NOBODY;
      this.name[slot] = "";
      this.moved = true;
    }
    for (const [slot, id, state, cell, owner, name] of news.new ?? []) {
      this.room(slot + 1);
      while (this.size <= slot) this.state[this.size++] = NOBODY;
      this.set(slot, id, state, cell, owner, name);
      this.moved = true;
    }
    for (const [slot, cell] of news.moved ?? []) {
      this.cell[slot] = cell;
      this.moved = true;
    }
    for (const change of news.changed ?? []) {
      const slot = change >>> 4;
      this.state[slot] = change & 15;
      this.changed.push(slot);
    }
    this.moment = news.moment;
  }

  set(slot, id, state, cell, owner, name) {
    this.id[slot] = id;
    this.state[slot] = state;
    this.cell[slot] = cell;
    this.owner[slot] = owner;
    this.name[slot] = name;
    this.slots.set(id, slot);
  }

  setCells(cells) {
    this.cells = new Map(cells.map((cell) => [cell.number, cell]));
  }

  /** Makes room for so many slots, doubling, so that a guest more is cheap. */
  room(size) {
    if (size <= this.id.length) return;
    const room = Math.max(size, this.id.length * 2, 1024);
    for (const key of ["id", "state", "cell", "owner"]) {
      const old = this[key];
      this[key] = new old.constructor(room);
      this[key].set(old);
    }
  }

  ownerOf(slot) {
    return this.owners[this.owner[slot]] ?? "";
  }

  stateOf(slot) {
    return this.states[this.state[slot]] ?? "";
  }
}
