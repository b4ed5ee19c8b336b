// Numbers as people read them, each with its unit.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (n) => whole.format(n);

// Three digits that matter.
const digits = (n) => (n >= 99.95 || n === 0 ? n.toFixed(0) : n >= 9.995 ? n.toFixed(1) : n.toFixed(2));

function scaled(n, step, prefixes) {
  let at = 0;
  while (n >= step * 0.9995 && at + 1 < prefixes.length) {
    n /= step;
    at += 1;
  }
  return [n, prefixes[at]];
}

const NONE = "not known";

export function rate(n) {
  if (n == null) return NONE;
  const [value, prefix] = scaled(n, 1000, ["", "k", "M", "G"]);
  return `${digits(value)} ${prefix}/s`;
}

export function bits(bytes) {
  if (bytes == null) return NONE;
  const [value, prefix] = scaled(bytes * 8, 1000, ["", "k", "M", "G", "T"]);
  return `${digits(value)} ${prefix}bit/s`;
}

export function bytes(n) {
  if (n == null) return NONE;
  const [value, prefix] = scaled(n, 1024, ["", "Ki", "Mi", "Gi", "Ti"]);
  return `${prefix ? digits(value) : value} ${prefix}B`;
}

export const things = (n) => (n == null ? NONE : count(n));

/** A number of things where there is little room. */
export function short(n) {
  if (n == null || n < 10_000) return things(n);
  const [value, prefix] = scaled(n, 1000, ["", "k", "M", "G"]);
  return `${digits(value)} ${prefix}`;
}

export function span(ns) {
  if (ns < 1e3) return `${ns} ns`;
  if (ns < 1e6) return `${digits(ns / 1e3)} us`;
  if (ns < 1e9) return `${digits(ns / 1e6)} ms`;
  const s = ns / 1e9;
  if (s < 60) return `${digits(s)} s`;
  const m = Math.floor(s / 60);
  if (m < 60) return `${m} min ${Math.floor(s % 60)} s`;
  const h = Math.floor(m / 60);
  return h < 48 ? `${h} h ${m % 60} min` : `${Math.floor(h / 24)} d ${h % 24} h`;
}

const clock = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export function fact({ kind, value }) {
  switch (kind) {
    case "count": return count(value);
    case "rate": return rate(value);
    case "bytes": return bytes(value);
    case "nanoseconds": return span(value);
    case "time": return clock.format(value);
    case "part": return `${(value * 100).toFixed(1)} %`;
    default: return String(value);
  }
}
