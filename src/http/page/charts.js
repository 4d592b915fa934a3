// The last hour: a strip of what was and was not ready, charts below it, and one moment that all of them are read at.

const STEP = 10e3, SLOTS = HOUR / STEP;
/** Histories of this process and of those before it that were seen in this hour, the oldest first. */
let histories = [];
/** Deaths with their moments. */
let fallen = [];

const lane = (of, ...names) => (at, history) => {
  const values = names.map((name) => history[of][name]?.[at]).filter((value) => value != null);
  return values.length ? values.reduce((sum, value) => sum + value) : null;
};
const time = (name, of) => (at, history) => history.job_ms[name]?.[of][at];
const plain = (...names) => (at, history) => names.reduce((sum, name) => sum + history[name][at], 0);

/** Each with one or two lines: the second is dashed. */
const CHARTS = [
  { title: "Inputs computed", unit: "a second", lines: [["inputs", plain("inputs_per_second")]] },
  { title: "Jobs answered", unit: "a second", lines: [["interactive", lane("jobs_per_second", "interactive")], ["bulk", lane("jobs_per_second", "bulk", "resumed")]] },
  { title: "Jobs waiting", unit: "at most", lines: [["interactive", lane("queue", "interactive")], ["bulk", lane("queue", "bulk", "resumed")]] },
  { title: "Latency, interactive", unit: "ms from delivery to acknowledgement", lines: [["median", time("interactive", "p50")], ["p99", time("interactive", "p99")]] },
  { title: "Latency, bulk", unit: "ms from delivery to acknowledgement", lines: [["median", time("bulk", "p50")], ["p99", time("bulk", "p99")]] },
  { title: "Turned away", unit: "a second", lines: [["overloaded", plain("overloaded_per_second", "http_refused_per_second")], ["other errors", plain("errors_per_second")]] },
];

const endOf = (history) => history.since_unix_ms + history.slots * history.step_ms;

/** Takes in a history. That of another process is kept beside it, for the hour before a death is what people look for. */
function remember(history, pid) {
  if (histories.at(-1)?.pid === pid) histories.pop();
  histories = [...histories, { ...history, pid }].slice(-20).filter((it) => endOf(it) >= endOf(history) - HOUR);
}

/** The slots of the hour that ends at `end`: for each the history that has it and its place there. */
function hourTo(end) {
  const slots = new Array(SLOTS).fill(null);
  for (const history of histories) {
    const first = Math.round((history.since_unix_ms - (end - HOUR)) / STEP);
    for (let at = Math.max(0, -first); at < history.slots && first + at < SLOTS; at++) {
      if (history.not_ready[at] != null) slots[first + at] = { history, at };
    }
  }
  return slots;
}

/** What to draw the hour by: its end, its slots, and which of them is looked at. */
function scene() {
  const last = histories.at(-1);
  const end = last ? endOf(last) : Date.now();
  const slider = $("moment"), chosen = Number(slider.value);
  const slots = hourTo(end), now = chosen >= SLOTS;
  return { end, slots, now, at: Math.min(chosen, SLOTS - 1), momentOf: (at) => end - HOUR + (at + 0.5) * STEP };
}

const valueAt = (slots, at, line) => (slots[at] ? line(slots[at].at, slots[at].history) : null);

/** A top for the axis that is easy to halve. */
function top(max) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(max, 1)));
  return [1, 2, 4, 6, 8, 10].map((n) => n * unit).find((n) => n >= max) ?? 10 * unit;
}

/** The path through the values; it breaks where there is none. */
function path(values, x, y) {
  let drawn = "", open = false;
  values.forEach((value, at) => {
    if (value != null) drawn += `${open ? "L" : "M"}${x(at)} ${y(value)}`;
    open = value != null;
  });
  return drawn;
}

/** Points, where a value stands alone. */
const dots = (values, x, y) => values.map((value, at) =>
  (value != null && values[at - 1] == null && values[at + 1] == null ? `M${x(at)} ${y(value)}h.01` : "")).join("");

function area(values, x, y) {
  let drawn = "", from = null;
  for (let at = 0; at <= values.length; at++) {
    if (values[at] != null) {
      drawn += from == null ? `M${x(at)} ${y(0)}V${y(values[at])}` : `L${x(at)} ${y(values[at])}`;
      from ??= at;
    } else if (from != null) {
      drawn += `V${y(0)}Z`;
      from = null;
    }
  }
  return drawn;
}

/** Draws one chart, and says in words what it shows. */
function drawChart(chart, { slots, end, now, at, momentOf }) {
  const width = chart.svg.clientWidth || 320, height = chart.svg.clientHeight || 128, low = height - 18, high = 8, right = 44;
  const series = chart.lines.map(([, line]) => slots.map((slot) => (slot ? line(slot.at, slot.history) : null)));
  const known = series.flat().filter((value) => value != null);
  const most = top(known.length ? Math.max(...known) : 1);
  const x = (slot) => (((slot + 0.5) / SLOTS) * (width - right)).toFixed(1);
  const y = (value) => (low - (value / most) * (low - high)).toFixed(1);
  const drawn = [];
  for (const value of [0, most / 2, most]) {
    drawn.push(el("svg:path", { class: "grid", d: `M0 ${y(value)}H${width - right}` }));
    drawn.push(el("svg:text", { x: width, y: Number(y(value)) + 4, "text-anchor": "end" }, number(value)));
  }
  for (const minutes of [45, 30, 15, 0]) {
    const place = (1 - minutes / 60) * (width - right);
    const label = new Date(end - minutes * 60e3).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
    drawn.push(el("svg:text", { x: place.toFixed(1), y: height - 3, "text-anchor": minutes ? "middle" : "end" }, label));
  }
  drawn.push(el("svg:path", { class: "area", d: area(series[0], x, y) }));
  series.forEach((values, n) => {
    drawn.push(el("svg:path", { class: `line line${n}`, d: path(values, x, y) }));
    drawn.push(el("svg:path", { class: `line line${n} dot`, d: dots(values, x, y) }));
  });
  if (!now) drawn.push(el("svg:path", { class: "cursor", d: `M${x(at)} ${high - 4}V${low}` }));
  chart.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  fill(chart.svg, drawn);
  chart.values.forEach((place, n) => say(place, number(series[n][at])));
  chart.svg.setAttribute("aria-label", `${chart.title}, ${chart.unit}. ${chart.lines.map(([name], n) => summary(name, series[n], momentOf)).join(" ")}`);
}

/** A line of a chart in words. */
function summary(name, values, momentOf) {
  let highest = null;
  values.forEach((value, at) => { if (value != null && (highest == null || value > values[highest])) highest = at; });
  if (highest == null) return `${name}: nothing in this hour.`;
  const last = values.at(-1);
  return `${name}: ${last == null ? "nothing" : number(last)} now, at most ${number(values[highest])} at ${clock(momentOf(highest))}.`;
}

/** The strip: high and hatched where new work was not welcome, nothing where nothing was said, a cross for a death. */
function drawStrip({ slots, end, now, at }) {
  const svg = $("strip"), width = svg.clientWidth || 320, height = 34;
  const x = (slot) => ((slot / SLOTS) * width).toFixed(1);
  const kind = (slot) => (slot == null ? "gap" : slot.history.not_ready[slot.at] ? "unready" : "ready");
  const hatch = el("svg:pattern", { id: "hatch", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    el("svg:path", { d: "M0 0V5", stroke: "var(--warn)", "stroke-width": 4 }));
  const drawn = [el("svg:defs", {}, hatch)];
  for (let from = 0; from < SLOTS; ) {
    let to = from;
    while (to < SLOTS && kind(slots[to]) === kind(slots[from])) to++;
    const [left, wide] = [x(from), (((to - from) / SLOTS) * width).toFixed(1)];
    if (kind(slots[from]) === "gap") drawn.push(el("svg:path", { class: "gap", d: `M${left} 30h${wide}` }));
    else {
      const bar = kind(slots[from]) === "ready" ? { y: 27, height: 7 } : { y: 6, height: 28 };
      drawn.push(el("svg:rect", { class: kind(slots[from]), x: left, width: wide, ...bar }));
    }
    from = to;
  }
  const deaths = fallen.filter((kill) => kill.at_unix_ms > end - HOUR);
  for (const kill of deaths) {
    const place = Math.min(width - 6, Math.max(6, (1 - (end - kill.at_unix_ms) / HOUR) * width));
    drawn.push(el("svg:path", { class: "death", d: `M${place - 5} 8l10 10m0-10l-10 10` }, el("svg:title", {}, `${kill.reason}, ${clock(kill.at_unix_ms)}`)));
  }
  if (!now) drawn.push(el("svg:path", { class: "cursor", d: `M${x(at + 0.5)} 0V34` }));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  fill(svg, drawn);
  const minutes = (of) => number((slots.filter((slot) => kind(slot) === of).length * STEP) / 60e3);
  svg.setAttribute("aria-label", `Of the last hour ready for ${minutes("ready")} minutes, not ready for ${minutes("unready")}, nothing said for ${minutes("gap")}; ${deaths.length} ${deaths.length === 1 ? "death" : "deaths"}.`);
}

/** Draws all of it again. */
function drawHour() {
  const seen = scene();
  drawStrip(seen);
  for (const chart of CHARTS) drawChart(chart, seen);
  const slot = seen.slots[seen.at], unready = slot?.history.not_ready[slot.at];
  const stood = !slot ? "nothing said" : unready ? `not ready: ${unready.replaceAll("_", " ")}` : "ready";
  const ago = seen.end - seen.momentOf(seen.at);
  const when = contact === "lost" && seen.now ? `until ${clock(seen.end)}` : seen.now ? "now, the mean of the last ten seconds" : `${clock(seen.momentOf(seen.at))}, ${span(ago)} ago: ${stood}`;
  say($("when"), when);
  const values = CHARTS.map((chart) => `${chart.title}: ${chart.lines.map(([name], n) => `${name} ${chart.values[n].textContent}`).join(", ")}`);
  $("moment").setAttribute("aria-valuetext", `${when}. ${values.join(". ")}`);
}

/** Makes the charts; a finger or a pointer over any of them, and the slider for the keyboard, choose the moment. */
function makeCharts() {
  for (const chart of CHARTS) {
    chart.svg = el("svg:svg", { role: "img" });
    chart.values = chart.lines.map(() => el("strong", {}, "–"));
    const legend = chart.lines.map(([name], n) => {
      const sample = el("svg:svg", { viewBox: "0 0 22 8", "aria-hidden": "true" }, el("svg:path", { class: `line line${n}`, d: "M1 4h20" }));
      return el("span", {}, sample, `${name} `, chart.values[n]);
    });
    $("charts").append(el("figure", {}, el("figcaption", {}, el("b", {}, chart.title), `${chart.unit}`, el("span", { class: "series" }, ...legend)), chart.svg));
  }
  const slider = $("moment");
  const choose = (to) => { slider.value = to; drawHour(); };
  const over = (event, room) => {
    const box = event.currentTarget.getBoundingClientRect();
    choose(Math.max(0, Math.min(SLOTS, Math.floor(((event.clientX - box.left) / (box.width - room)) * SLOTS))));
  };
  slider.addEventListener("input", drawHour);
  slider.addEventListener("keydown", (event) => { if (event.key === "Escape") choose(SLOTS); });
  for (const [svg, room] of [[$("strip"), 0], ...CHARTS.map((chart) => [chart.svg, 44])]) {
    svg.addEventListener("pointermove", (event) => over(event, room));
    svg.addEventListener("pointerleave", () => choose(SLOTS));
  }
  new ResizeObserver(drawHour).observe($("charts"));
}
