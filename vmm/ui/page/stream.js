// The stream of the daemon. Closed while nobody sees the page, so that nothing is done for it then.

const SILENCE = 3000;
const PATIENCE = 1500;

export class Stream {
  constructor({ onEverything, onDifference, onState }) {
    Object.assign(this, { onEverything, onDifference, onState });
    this.source = null;
    this.heard = 0;
    document.addEventListener("visibilitychange", () => this.seen());
    setInterval(() => this.watch(), 1000);
    this.seen();
  }

  seen() {
    clearTimeout(this.leaving);
    if (document.visibilityState === "visible") {
      if (!this.source) this.open();
    } else {
      // Whoever only changes tabs for a moment comes back to what is still there.
      this.leaving = setTimeout(() => this.close("resting"), 5000);
    }
  }

  open(state = "connecting") {
    this.onState(state);
    this.heard = performance.now();
    const source = (this.source = new EventSource("api/stream"));
    const hear = (then) => (event) => {
      this.heard = performance.now();
      this.onState("live");
      then(JSON.parse(event.data));
    };
    source.addEventListener("everything", hear(this.onEverything));
    source.addEventListener("difference", hear(this.onDifference));
    source.addEventListener("error", () => this.onState("lost"));
  }

  close(state) {
    this.source?.close();
    this.source = null;
    this.onState(state);
  }

  /** A browser does not notice a daemon that hangs, nor tries again after a refusal. */
  watch() {
    if (!this.source) return;
    const silent = performance.now() - this.heard;
    if (silent > PATIENCE) this.onState("lost");
    if (silent > SILENCE) {
      this.close("lost");
      this.open("lost");
    }
  }
}
