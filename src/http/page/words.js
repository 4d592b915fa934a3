// Words, numbers and elements. Whatever comes from outside becomes text, never markup.

const SVG = "http://www.w3.org/2000/svg";
const HOUR = 3600e3;
const $ = (id) => document.getElementById(id);

/** Makes an element: its attributes, its class, what is in it. */
function el(name, attributes, ...children) {
  const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) if (value != null) made.setAttribute(key, value);
  made.append(...children.filter((child) => child != null));
  return made;
}

/** Puts a text where another one stands, and touches nothing if it is the same: a screen reader goes by changes. */
function say(where, text) {
  if (where.textContent !== text) where.textContent = text;
}

/** Makes what is in an element equal to `children`, in place: a selection, a focus and a reader's place stay where they are. */
function fill(where, children) {
  children.forEach((child, at) => {
    const there = where.childNodes[at];
    if (!there) where.append(child);
    else if (there.isEqualNode(child)) return;
    else if (there.nodeName !== child.nodeName) there.replaceWith(child);
    else if (there.nodeType === Node.TEXT_NODE) there.data = child.data;
    else {
      for (const { name } of [...there.attributes]) if (!child.hasAttribute(name)) there.removeAttribute(name);
      for (const { name, value } of child.attributes) if (there.getAttribute(name) !== value) there.setAttribute(name, value);
      fill(there, [...child.childNodes]);
    }
  });
  while (where.childNodes.length > children.length) where.lastChild.remove();
}

/** A text with `commands` in it, as the terminal shows it. */
const worded = (text) => text.split("`").map((part, at) => (at % 2 ? el("code", {}, part) : part));

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

/** A number in as many digits as it is worth. */
function number(value) {
  if (value == null) return "–";
  return (Math.abs(value) < 10 ? tenths : whole).format(value);
}

/** A span of time as `embeddings status` says it, and finer below a second. */
function span(ms) {
  if (ms == null) return "–";
  const s = Math.floor(ms / 1000), min = Math.floor(s / 60), h = Math.floor(min / 60);
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (s < 10) return `${(Math.floor(ms / 100) / 10).toFixed(1)} s`;
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${min} min`;
  if (s < 172800) return `${h} h ${min % 60} min`;
  return `${Math.floor(h / 24)} days`;
}

/** An age, to a tenth of a second: finer than it is asked for would only flicker. */
const age = (ms) => (ms == null ? "–" : ms < 1000 ? `${(Math.floor(ms / 100) / 10).toFixed(1)} s` : span(ms));

/** A value and its unit, as conditions and limits have them. */
function amount(value, unit) {
  if (value == null) return "";
  if (unit === "ms") return span(value);
  if (unit === "bytes") return `${number(value / 2 ** 20)} MiB`;
  return `${number(value)}${unit ? ` ${unit}` : ""}`;
}

/** A moment of the day; with its date if that is another one. */
function clock(unixMs) {
  const then = new Date(unixMs), time = then.toLocaleTimeString("en-GB");
  if (Math.abs(Date.now() - unixMs) < 12 * HOUR) return time;
  return `${then.toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" })} ${time}`;
}

/** The same for programs. */
const moment = (unixMs) => el("time", { datetime: new Date(unixMs).toISOString() }, clock(unixMs));

// Signs: known by their shape alone. A disc with a tick; half a disc; a triangle; a ring; a square; a ring with gaps.
const DISC = "M12 1a11 11 0 1 0 0 22 11 11 0 0 0 0-22z";
const SIGNS = {
  running: `${DISC}M17.9 8.1 10.6 16.5 6.1 12.5 7.5 10.9 10.4 13.5 16.3 6.7z`,
  degraded: `${DISC}M12 3.2v17.6a8.8 8.8 0 0 0 0-17.6z`,
  alarm: "M12 1.5 23.5 22H.5zM10.9 9v6.5h2.2V9zm0 8.2v2.3h2.2v-2.3z",
  starting: `${DISC}M12 3.2a8.8 8.8 0 1 1 0 17.6 8.8 8.8 0 0 1 0-17.6zM10.9 6v7l4.6 3 1.2-1.8-3.6-2.4V6z`,
  stopping: `${DISC}M12 3.2a8.8 8.8 0 1 1 0 17.6 8.8 8.8 0 0 1 0-17.6zM8.5 8.5h7v7h-7z`,
  gone: "M12 1A11 11 0 0 0 8 1.8l.8 2.1A8.8 8.8 0 0 1 12 3.2zM16 1.8l-.8 2.1a8.8 8.8 0 0 1 4.9 4.9l2.1-.8A11 11 0 0 0 16 1.8zM23 12h-2.2a8.8 8.8 0 0 1-.7 3.2l2.1.8A11 11 0 0 0 23 12zM20.2 19.1l-1.6-1.5a8.8 8.8 0 0 1-3.4 2.5l.8 2.1a11 11 0 0 0 4.2-3.1zM12 23v-2.2a8.8 8.8 0 0 1-3.2-.7L8 22.2a11 11 0 0 0 4 .8zM4.9 19.8l1.5-1.6a8.8 8.8 0 0 1-2.5-3.4l-2.1.8a11 11 0 0 0 3.1 4.2zM1 12h2.2a8.8 8.8 0 0 1 .7-3.2L1.8 8A11 11 0 0 0 1 12zM5 4.3l1.5 1.6.9-.7L6.2 3.4zM7.4 8.8l1.4-1.4L12 10.6l3.2-3.2 1.4 1.4-3.2 3.2 3.2 3.2-1.4 1.4-3.2-3.2-3.2 3.2-1.4-1.4 3.2-3.2z",
  yes: "M21.5 5.6 9.6 19.2 2.6 13l2-2.3 4.7 4.1L19.2 3.6z",
  no: "M4.2 2 12 9.8 19.8 2 22 4.2 14.2 12l7.8 7.8-2.2 2.2L12 14.2 4.2 22 2 19.8 9.8 12 2 4.2z",
};

/** A sign that says yes or no, with a word for those who do not see it. */
function mark(ok) {
  const drawn = el("svg:svg", { class: `mark ${ok ? "good" : "bad"}`, viewBox: "0 0 24 24", "aria-hidden": "true" }, el("svg:path", { d: ok ? SIGNS.yes : SIGNS.no }));
  return [drawn, el("span", { class: "unseen" }, ok ? "holds: " : "fails: ")];
}
