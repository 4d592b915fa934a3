// What is asked, how often, and what is shown of the answers; and what is shown while there are none.

/** A question each second; one that is not answered in time is given up. */
const EVERY = 1000, PATIENCE = 2500;
/** Without an answer for so long contact is lost, and at once after two failures in a row. */
const LOST = 3500;
const KEY = "embeddings-token";
/** The tab's own store, or this page's memory in a browser that keeps nothing. */
const kept = (() => {
  try {
    return sessionStorage;
  } catch {
    const memory = new Map();
    return { getItem: (key) => memory.get(key), setItem: (key, value) => memory.set(key, value), removeItem: (key) => memory.delete(key) };
  }
})();

const STAGES = {
  received: ["on its way here from the broker", "jobs"],
  admitted: ["being read and cut into tokens", "jobs"],
  batched: ["waiting for an engine", "inputs"],
  computed: ["in an engine", "inputs"],
  published: ["answered, until the broker confirms", "jobs"],
  acked: ["until the broker has our word for it", "jobs"],
};

/** What HTTP turns away before it is a job, by the names of the status. */
const DOOR = { http_requests: "too many requests", http_bodies: "bodies too large together", http_connections: "too many connections" };

/** When an answer last came, by the clock that is never set; how many failures since. */
let heard = null, heardUnix = null, failures = 0, timedOut = false;
let contact = "asking", refused = null, said = "", icon = "", wake = () => {};

/** What a report's state is called, and its sign. */
function stateOf({ state, activity }) {
  if (state === "running") return ["Running", "running", "good"];
  if (["loading", "starting"].includes(activity)) return ["Starting", "starting", "mute"];
  if (activity === "draining") return ["Stopping", "stopping", "mute"];
  if (activity === "hung") return ["Hung", "alarm", "bad"];
  if (activity === "stalled") return ["Stalled", "alarm", "bad"];
  return ["Degraded", "degraded", "warn"];
}

/** What makes it so: the status line without the word and without the figures, which stand below. */
function causeOf({ line, model, device }) {
  const parts = line.split(" · ");
  const named = ["ready", "degraded", "draining", "starting"].includes(parts[0]) ? parts.slice(1) : parts;
  const figures = named.findIndex((part) => part.startsWith(`${model} on `));
  const cause = (figures < 0 ? named : named.slice(0, figures)).join(" · ");
  return cause || (model ? `${model} on ${device}` : "");
}

function showState([word, sign, tone], cause, hints) {
  say($("word"), word);
  $("sign").firstElementChild.setAttribute("d", SIGNS[sign]);
  $("state").firstElementChild.setAttribute("class", tone);
  say($("cause"), cause);
  fill($("hints"), hints.map((hint) => el("li", {}, ...worded(hint))));
  document.title = `${{ running: "●", alarm: "▲", gone: "○" }[sign] ?? "◐"} ${word} · embeddings`;
  const colour = { good: "#00805f", warn: "#c77700", bad: "#d0342c" }[tone] ?? "#7d7d7d";
  const drawn = `<svg xmlns="${SVG}" viewBox="0 0 24 24"><path fill="${colour}" fill-rule="evenodd" d="${SIGNS[sign]}"/></svg>`;
  if (icon !== drawn) $("icon").href = `data:image/svg+xml,${encodeURIComponent(drawn)}`;
  icon = drawn;
  // Said aloud when the word changes, and not with every figure in the cause.
  if (word !== said) say($("said"), `embeddings: ${word}. ${cause}`);
  said = word;
}

function showFigures(seen) {
  const { queue, queue_max: max, inflight, limits, broker } = seen;
  const figures = [
    ["Inputs", number(seen.inputs_per_second), "a second", "computed, lately"],
    ["Waiting", number(queue), `of ${number(max)}`, `bulk: ${number(seen.queues.bulk ?? 0)}`],
    ["In flight", number(inflight), `of ${number(limits.max_inflight)}`, "jobs in the engines"],
    ["Last job", ...split(span(seen.last_job_latency_ms)), seen.avg_job_ms == null ? "none yet" : `mean ${span(seen.avg_job_ms)} in work`],
    ["Broker answered", ...split(age(broker.proof_age_ms)), broker.proof_age_ms == null ? "never" : `ago, limit ${span(limits.disconnect_kill_ms)}`],
    ["All the way round", ...split(age(seen.round_age_ms)), seen.round_age_ms == null ? "nothing yet" : "ago, a job or a canary"],
  ];
  fill($("figures"), figures.map(([name, value, unit, note]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value, unit && el("span", { class: "unit" }, unit), el("div", { class: "note" }, note)))));
}

/** A number and its unit apart. */
function split(text) {
  const at = text.indexOf(" ");
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
}

function showFlow({ stages, limits, stalled_stage: stalled }) {
  const limit = limits.liveness_max_stall_ms;
  const items = stages.map((stage) => {
    const [what, unit] = STAGES[stage.name] ?? ["", ""];
    const part = limit ? Math.min(1, stage.waiting_ms / limit) : 0;
    const isStalled = stage.name === stalled || part >= 1, late = isStalled || part >= 0.5;
    const left = stage.progress_age_ms;
    const moved = left == null ? "nothing has left it yet" : left < 1000 ? "last left just now" : `last left ${span(left)} ago`;
    const note = isStalled ? `Stalled: nothing leaves since ${span(stage.waiting_ms)}` : late ? `Slow: ${span(stage.waiting_ms)} of ${span(limit)}` : moved;
    const bar = el("svg:svg", { class: "bar", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" }, el("svg:rect", { width: Math.round(100 * part) }));
    return el("li", { class: `${stage.inside ? "" : "none"} ${late ? `late ${isStalled ? "bad" : "warn"}` : ""}` },
      el("h3", {}, stage.name), el("p", { class: "what" }, what),
      el("p", { class: "inside" }, number(stage.inside), el("span", { class: "unit" }, `${unit} inside`)),
      el("p", { class: "age" }, note), bar);
  });
  fill($("flow"), items);
}

function showDeaths({ kills, kills_unknown: unknown, at_unix_ms: now }) {
  fallen = kills;
  const items = kills.map((kill) => el("li", {},
    el("p", { class: "head" }, el("span", { class: "code" }, kill.reason), kill.stage ? `at ${kill.stage}` : null,
      el("span", { class: "mute" }, ...(kill.at_unix_ms ? [moment(kill.at_unix_ms), `, ${span(Math.max(0, now - kill.at_unix_ms))} ago`] : []),
        kill.uptime_ms == null ? "" : `, after ${span(kill.uptime_ms)} of life`)),
    kill.detail ? el("p", { class: "detail mute" }, kill.detail) : null,
    kill.hint ? el("p", { class: "hint" }, ...worded(kill.hint)) : null));
  fill($("deaths"), items.length ? items : [el("li", { class: "mute" }, unknown ? `They cannot be told: ${unknown}` : "None on record.")]);
}

function showConditions(conditions) {
  const row = ({ name, ok, value, limit, unit }) => el("tr", {},
    el("th", { scope: "row" }, ...mark(ok), name.replaceAll("_", " ")),
    el("td", {}, value == null ? "–" : unit === "ms" ? age(value) : amount(value, unit)),
    el("td", { class: "mute" }, limit == null ? "–" : amount(limit, unit)));
  fill($("conditions"), conditions.map(row));
}

function showRest({ limits, models, retrying, backpressure }) {
  const unit = (key) => (key.endsWith("_ms") ? "ms" : key.endsWith("_bytes") ? "bytes" : "");
  fill($("limits"), Object.entries(limits).map(([key, value]) =>
    el("div", {}, el("dt", { class: "code" }, key), el("dd", {}, amount(value, unit(key))))));
  fill($("models"), Object.entries(models).map(([name, state]) => el("li", {}, el("span", {}, name), el("span", { class: "mute" }, state))));
  $("trying").hidden = !retrying.length;
  fill($("retrying"), retrying.map((job) => el("li", {},
    el("p", {}, el("span", { class: "code" }, job.job), ` attempt ${job.attempt}${job.retry_in_ms == null ? "" : ` in ${span(job.retry_in_ms)}`}`),
    el("p", { class: "detail mute" }, job.last_error))));
}

/** How often what was turned away: jobs by each lane's causes, and what HTTP never made a job of. */
function showTurnedAway({ backpressure, http }) {
  const jobs = Object.entries(backpressure).flatMap(([lane, { refused }]) =>
    Object.entries(refused).map(([cause, count]) => [`${lane}: ${cause.replaceAll("_", " ")}`, count]));
  const door = Object.entries(http.refused).map(([full, count]) => [`HTTP: ${DOOR[full] ?? full.replaceAll("_", " ")}`, count]);
  const items = [...jobs, ...door].filter(([, count]) => count > 0).map(([what, count]) =>
    el("li", {}, el("span", {}, what), el("span", {}, number(count))));
  fill($("away"), items.length ? items : [el("li", { class: "mute" }, "Nothing.")]);
}

/** Lanes that turn jobs away, as further hints. */
function refusing({ backpressure }) {
  return Object.entries(backpressure).filter(([, lane]) => lane.on).map(([name, lane]) =>
    `${name} jobs are ${name === "interactive" ? "turned away" : "held back"} since ${span(lane.since_ms)}: ${(lane.cause ?? "unknown").replaceAll("_", " ")}`);
}

function show(seen) {
  showState(stateOf(seen), causeOf(seen), [...seen.hints, ...refusing(seen)]);
  say($("who"), [seen.host, `version ${seen.version}`, `process ${seen.pid}`, `up ${span(seen.uptime_ms)}`, seen.rss_bytes && `${number(seen.rss_bytes / 2 ** 20)} MiB`].filter(Boolean).join(" · "));
  showConditions(seen.conditions);
  const whole = seen.stages.length > 0;
  $("now").hidden = $("way").hidden = !whole;
  if (whole) { showFigures(seen); showFlow(seen); }
  showDeaths(seen);
  showRest(seen);
  showTurnedAway(seen);
}

/** What is open without a token: the health. */
function showHealth(health) {
  const word = (name) => health.not_ready === name;
  const stalled = health.conditions.some((it) => it.of === "liveness" && !it.ok);
  const activity = word("hung") ? "hung" : stalled ? "stalled" : word("draining") ? "draining" : word("starting") ? "starting" : "degraded";
  const state = stateOf({ state: health.status === "ok" ? "running" : "degraded", activity });
  showState(state, health.line.replace(/^(ready|degraded|draining|starting) · /, ""), []);
  say($("who"), "");
  showConditions(health.conditions);
}

/** Shows the parts that a token opens, or the question for it. */
function open(isOpen, why) {
  document.body.classList.toggle("shut", !isOpen);
  $("ask").hidden = isOpen;
  $("forget").hidden = !isOpen || !kept.getItem(KEY);
  if (isOpen) say($("wrong"), "");
  if (why) say($("why"), why);
}

/** Says plainly whether what is shown is of now. */
function showContact() {
  const label = $("contact"), shown = heardUnix && clock(heardUnix);
  const lost = contact === "lost";
  document.body.classList.toggle("lost", lost && heard != null);
  label.className = contact === "live" ? "live good" : lost ? "bad" : "mute";
  label.firstElementChild.firstElementChild.setAttribute("d", contact === "live" ? DISC : SIGNS.gone);
  say(label.lastElementChild, contact === "live" ? `live, ${shown}` : lost ? (shown ? `as of ${shown}` : "no answer") : "asking");
  if (!lost) return;
  const silent = performance.now() - (heard ?? 0);
  const how = timedOut ? "The connection stands and nothing answers: it hangs as a whole, or the way to it is slow." : "Nothing takes the connection: the process is gone, or the way to it is cut.";
  const since = heard == null ? "It has not answered so far." : `No answer since ${shown}, for ${span(Math.max(1000, silent))}. What is below is of then.`;
  showState(["No contact", "gone", "bad"], since, [how, "on its machine: `systemctl status embeddings`, `journalctl -u embeddings -n 30`", "this page goes on asking and comes back by itself"]);
}

/** Whether a further slot of the hour is over. Another process has another hour, and a clock may be set. */
function isOutdated({ pid, at_unix_ms: now }) {
  const last = histories.at(-1);
  const next = last && endOf(last) + last.step_ms;
  return last?.pid !== pid || now >= next || now < next - 2 * last.step_ms;
}

async function ask(path) {
  const token = kept.getItem(KEY);
  const answer = await fetch(path, { headers: token ? { authorization: `Bearer ${token}` } : {}, cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  return { status: answer.status, body: await answer.json() };
}

/** One question and what follows from it. */
async function look() {
  const token = kept.getItem(KEY);
  // What was refused is not asked for again without a reason.
  const known = refused === 421 || (refused === 401 && !token);
  try {
    const { status, body } = known ? { status: refused } : await ask("/status");
    if (status === 200) {
      refused = null;
      show(body);
      open(true);
    } else if (status === 401 || status === 421) {
      refused = status;
      showHealth((await ask("/health/ready")).body);
      open(false, status === 421 && body ? `${body.error.message}. Open this page by an address, such as 127.0.0.1.` : null);
      $("ask").querySelector("form").hidden = status === 421;
      if (status === 401 && token) {
        say($("wrong"), "That is not the token of this service.");
        kept.removeItem(KEY);
      }
    } else throw new Error(`status ${status}`);
    [heard, heardUnix, failures, contact] = [performance.now(), Date.now(), 0, "live"];
    $("page").classList.remove("blank");
    showContact();
    if (status !== 200) return;
    if (isOutdated(body)) {
      const history = await ask("/history");
      if (history.status === 200) remember(history.body, body.pid);
    }
    drawHour();
  } catch (failure) {
    failures += 1;
    timedOut = failure.name === "TimeoutError";
    if (failures >= 2 || performance.now() - (heard ?? 0) >= LOST) [contact, refused] = ["lost", null];
    showContact();
    drawHour();
  }
}

async function watch() {
  for (;;) {
    await look();
    await new Promise((resolve) => {
      wake = resolve;
      // A tab that nobody sees asks seldom, and at once when it is seen again.
      setTimeout(resolve, document.hidden ? 5 * EVERY : EVERY);
    });
  }
}

$("page").hidden = false;
document.addEventListener("visibilitychange", () => wake());
$("ask").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  kept.setItem(KEY, $("token").value.trim());
  $("token").value = "";
  say($("wrong"), "");
  wake();
});
$("forget").addEventListener("click", () => { kept.removeItem(KEY); wake(); });
makeCharts();
watch();
