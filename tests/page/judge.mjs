// What a person would see of the live page, judged in a real Chromium: on a telephone and on a desk, by day and by night.
//
// The test beside this (tests/broker/page.rs) has the service in its hands and says by a line on stdin what state it has
// brought it to; this looks at the pages, which stay open all the while as they would for whoever is on call, and answers
// `ok` or `fail` and why. Screenshots go to the folder in PAGE_SHOTS. PAGE_TOOLS is where the driver is installed.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { contrasts, spill } from "./look.mjs";

const tools = createRequire(join(process.env.PAGE_TOOLS, "package.json"));
const { chromium } = tools("playwright-core");
const axe = readFileSync(tools.resolve("axe-core/axe.min.js"), "utf8");

/** WCAG 2.2, 1.4.3 and 1.4.11. */
const CONTRAST_TEXT = 4.5;
/** Google's bound of a good page; here over a quarter of a minute of updates. */
const SHIFT_MAX = 0.1;
/** Contact that is lost, or is back, is shown by then. */
const NOTICED_MS = 6000;
const STAGES = ["received", "admitted", "batched", "computed", "published", "acked"];

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: process.getuid() ? [] : ["--no-sandbox"] });
let base, pages = [];

/** Opens the page as one person sees it, and keeps what the browser complains of. */
async function open(width, scheme) {
  const context = await browser.newContext({ viewport: { width, height: width < 500 ? 844 : 900 }, colorScheme: scheme, reducedMotion: "reduce" });
  const page = await context.newPage();
  const name = `${width}-${scheme}`, complaints = [];
  page.on("console", (line) => line.type() === "error" && complaints.push(line.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("dialog", (dialog) => { complaints.push(`dialog ${dialog.message()}`); dialog.dismiss(); });
  page.on("request", (request) => new URL(request.url()).origin === base || request.url().startsWith("data:") || complaints.push(`asks ${request.url()}`));
  await page.addInitScript(() => {
    globalThis.seen = { shift: 0, violations: [] };
    addEventListener("securitypolicyviolation", (event) => seen.violations.push(event.violatedDirective));
    new PerformanceObserver((list) => list.getEntries().forEach((it) => (seen.shift += it.hadRecentInput ? 0 : it.value))).observe({ type: "layout-shift", buffered: true });
  });
  const answer = await page.goto(base);
  const policy = answer.headers()["content-security-policy"];
  assert.match(policy, /default-src 'none'.*script-src 'sha256-/);
  assert.doesNotMatch(policy, /unsafe/);
  return { page, name, width, complaints };
}

const word = (page, text, timeout = NOTICED_MS) => page.getByRole("heading", { level: 1, name: text, exact: true }).waitFor({ timeout });
const shown = async (page, id) => (await page.locator(`#${id}`).innerText()).replace(/\s+/g, " ");

/** What holds of the page in any state. */
async function sound({ page, name, complaints }, phase, { refused = false, rules = true } = {}) {
  const where = `${phase} ${name}`;
  await page.screenshot({ path: join(process.env.PAGE_SHOTS, `${phase}-${name}.png`), fullPage: true });
  assert.deepEqual(await page.evaluate(spill), [], `${where}: wider than the screen`);
  const faint = (await page.evaluate(contrasts)).filter((it) => it.contrast < CONTRAST_TEXT);
  assert.deepEqual(faint, [], `${where}: text too faint`);
  if (rules) {
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
    assert.deepEqual(violations.map((it) => [it.id, it.nodes.map((node) => node.html)]), [], where);
  }
  // A connection that nobody takes is told of by the browser itself.
  const own = complaints.filter((it) => !(refused && /ERR_(CONNECTION|EMPTY|INCOMPLETE)/.test(it)));
  assert.deepEqual(own, [], `${where}: the browser complains`);
  assert.deepEqual(await page.evaluate(() => seen.violations), [], `${where}: the policy is broken`);
}

const cases = {
  async open([url]) {
    base = url;
    pages = [];
    for (const width of [390, 1440]) for (const scheme of ["light", "dark"]) pages.push(await open(width, scheme));
  },

  /** At work: the state, the six stages, figures that move, charts and limits, all with names and roles. */
  async healthy() {
    for (const it of pages) {
      const { page } = it;
      await word(page, "Running");
      assert.match(await page.title(), /^● Running/);
      await page.waitForFunction(() => /\d/.test(document.querySelector("figcaption strong").textContent), null, { timeout: 15000 });
      const stages = page.getByRole("region", { name: "The way of a job" }).getByRole("listitem");
      assert.deepEqual(await stages.locator("h3").allInnerTexts(), STAGES);
      for (const stage of await stages.allInnerTexts()) assert.match(stage, /\d+ ?(jobs|inputs) inside[^]*(last left|nothing has left)/, stage);
      for (const title of ["Inputs computed", "Jobs answered", "Jobs waiting", "Latency, interactive", "Latency, bulk", "Turned away"]) {
        assert.equal(await page.getByRole("img", { name: new RegExp(`^${title}, .*:`) }).count(), 1, title);
      }
      assert.match(await page.getByRole("img", { name: /^Of the last hour/ }).getAttribute("aria-label"), /ready for [\d.]+ minutes/);
      assert.match(await page.getByRole("img", { name: /^Inputs computed/ }).getAttribute("aria-label"), /at most [\d.,]+ at \d\d:/);
      // One job for its bytes, and requests for want of room for their bodies, which HTTP itself turned away.
      await page.waitForFunction(async () => {
        const { overloaded_per_second: jobs, http_refused_per_second: door } = await (await fetch("/history")).json();
        const most = Math.max(...door.map((count, at) => count + jobs[at]));
        const said = document.querySelector('[aria-label^="Turned away"]').getAttribute("aria-label");
        return door.some((count) => count > 0) && said.includes(`at most ${Math.round(most * 10) / 10} at`);
      }, null, { timeout: 15000, polling: 500 });
      assert.match(await shown(page, "limits"), /max_queue\s+256[^]*slam_limit_ms\s+20 s/);
      assert.match(await shown(page, "away"), /interactive: bytes 1 HTTP: bodies too large together [1-9]/);
      assert.match(await shown(page, "conditions"), /holds: broker proven/);
      assert.match(await shown(page, "deaths"), /None on record/);
      assert.match(await shown(page, "contact"), /live/);
      const uptime = await shown(page, "who");
      await page.waitForFunction((old) => document.getElementById("who").textContent !== old, uptime, { timeout: NOTICED_MS });
      await sound(it, "healthy", { rules: ["390-light", "1440-dark"].includes(it.name) });
    }
    const { page } = pages.find((it) => it.name === "1440-light");
    const slider = page.getByRole("slider", { name: "A moment of the last hour" });
    for (let key = 0; key < 10 && !(await slider.evaluate((it) => it === document.activeElement)); key++) await page.keyboard.press("Tab");
    assert.ok(await slider.evaluate((it) => it.matches(":focus-visible")), "the keyboard reaches the slider");
    await page.keyboard.press("ArrowLeft");
    assert.match(await shown(page, "when"), /^\d\d:\d\d:\d\d, .* ago: (not )?ready/);
    assert.match(await slider.getAttribute("aria-valuetext"), /ago: (not )?ready.*Inputs computed: inputs/);
    await page.keyboard.press("Escape");
    assert.match(await shown(page, "when"), /^now/);
    for (const it of pages) {
      await it.page.evaluate(() => (globalThis.mine = true));
      assert.ok((await it.page.evaluate(() => seen.shift)) < SHIFT_MAX, `${it.name}: things move about`);
    }
  },

  /** The broker is lost: the word, the cause, what comes next, the condition that fails. */
  async degraded() {
    for (const it of pages) {
      await word(it.page, "Degraded");
      assert.match(await it.page.title(), /^◐ Degraded/);
      assert.match(await shown(it.page, "cause"), /broker/);
      assert.match(await shown(it.page, "hints"), /without an answer it ends in/);
      assert.match(await it.page.getByRole("status").first().textContent(), /^embeddings: Degraded\. .*broker/);
      assert.match(await shown(it.page, "conditions"), /fails: broker proven/);
      await sound(it, "degraded", { rules: it.name === "390-dark" });
    }
  },

  /** Nobody answers: it says so, since when, and what is old looks old. */
  async gone([how]) {
    for (const it of pages) {
      await word(it.page, "No contact");
      assert.match(await it.page.title(), /^○ No contact/);
      assert.match(await shown(it.page, "cause"), /No answer since \d\d:\d\d:\d\d.*What is below is of then/);
      assert.match(await shown(it.page, "hints"), how === "hangs" ? /hangs as a whole/ : /process is gone/);
      assert.match(await shown(it.page, "contact"), /as of \d\d:/);
      assert.match(await it.page.getByRole("status").first().textContent(), /^embeddings: No contact/);
      const [old, mute] = await it.page.evaluate(() => [document.querySelector("#flow .inside"), document.querySelector("footer")].map((of) => getComputedStyle(of).color));
      assert.equal(old, mute, "old figures are muted");
      await sound(it, `gone-${how}`, { refused: true, rules: it.name === "1440-light" });
    }
  },

  /** It answers again: the same page, without a hand laid on it, and the death with its reason and its cure. */
  async back([reason]) {
    for (const it of pages) {
      await word(it.page, "Running", 15000);
      assert.ok(await it.page.evaluate(() => globalThis.mine), "the page was never loaded again");
      assert.equal(await it.page.evaluate(() => document.body.classList.contains("lost")), false);
      if (reason) {
        assert.match(await shown(it.page, "deaths"), new RegExp(`${reason}[^]*ago[^]*of life[^]*look at RabbitMQ`));
        await it.page.waitForFunction(() => document.querySelector("#strip .death"), null, { timeout: 15000 });
        assert.match(await it.page.getByRole("img", { name: /^Of the last hour/ }).getAttribute("aria-label"), /; 1 deaths?\./);
      }
      await sound(it, reason ? "back" : "thawed", { refused: true, rules: it.name === "1440-dark" });
    }
  },

  /** With a token: health is open and the rest is asked for; a wrong one opens nothing. */
  async token(words) {
    const token = words.join(" ");
    for (const it of pages) {
      const { page } = it;
      await word(page, "Running");
      assert.match(await shown(page, "conditions"), /broker proven/);
      assert.equal(await page.getByRole("region", { name: "The way of a job" }).count(), 0);
      it.complaints.splice(0, Infinity, ...it.complaints.filter((told) => !/status of 401/.test(told)));
      await sound(it, "shut", { rules: it.name === "390-light" });
      await page.getByLabel("Token").fill("not this");
      await page.keyboard.press("Enter");
      await page.getByRole("alert").filter({ hasText: "not the token" }).waitFor({ timeout: NOTICED_MS });
      await page.getByLabel("Token").fill(token);
      await page.getByRole("button", { name: "Open" }).click();
      await page.getByRole("region", { name: "The way of a job" }).waitFor({ timeout: NOTICED_MS });
      assert.equal(await page.getByLabel("Token").isVisible(), false);
      it.complaints.splice(0, Infinity, ...it.complaints.filter((told) => !/status of 401/.test(told)));
    }
  },

  /** An engine that stands still: the stage that waits is marked in words long before anything ends. */
  async stuck() {
    for (const it of pages) {
      const stage = it.page.getByRole("region", { name: "The way of a job" }).getByRole("listitem").filter({ hasText: "computed" });
      await stage.filter({ hasText: /Slow: .* of|Stalled: nothing leaves/ }).waitFor({ timeout: 15000 });
      await sound(it, "stuck", { rules: false });
    }
  },

  /** What a service rarely says, and what nobody should: real answers, changed on the way into the browser. */
  async rare() {
    const it = await open(390, "light"), { page } = it;
    // One route for all of it: an answer on its way would find another's gone.
    let change = (said) => said;
    await page.route("**/status", async (route) => {
      const answer = await route.fetch();
      await route.fulfill({ response: answer, json: change(await answer.json()) });
    });
    const markup = "<img src=x onerror=alert(1)><script>alert(2)</script>";
    const long = "x".repeat(300);
    change = (said) => ({ ...said, state: "degraded", activity: "hung", not_ready: "hung", line: `its loop ${markup}`, host: markup,
      hints: [`\`${markup}\``], models: { [markup]: long }, retrying: [{ job: long, attempt: 2, retry_in_ms: 100, last_error: markup }],
      backpressure: { bulk: { on: true, cause: markup, since_ms: 5, changes: 1, refused: { [markup]: 12345, bytes: 0 } } },
      http: { refused: { http_requests: 3, http_connections: 4e6, [long]: 1 } },
      kills: [{ reason: markup, stage: markup, at_unix_ms: 1e12, uptime_ms: 1, detail: `${markup}\n${long}`, hint: markup }] });
    await word(page, "Hung");
    await page.getByText("Jobs that are tried again").waitFor();
    assert.equal(await page.locator("#page img, #page script").count(), 0, "text became markup");
    assert.ok((await shown(page, "deaths")).includes(markup));
    const away = await shown(page, "away");
    assert.ok(away.includes(`bulk: ${markup.replaceAll("_", " ")} 12,345`) && !away.includes("bytes"), away);
    assert.match(away, /HTTP: too many requests 3 HTTP: too many connections 4,000,000/);
    await sound(it, "rare");
    change = (said) => ({ ...said, state: "degraded", activity: "loading", not_ready: "starting", line: "loading models · 0.2 s ago",
      stages: [], limits: {}, models: {}, conditions: [], backpressure: {}, http: { refused: {} }, jobs: {}, queues: {}, kills: [], kills_unknown: "the disk does not answer", hints: [] });
    await word(page, "Starting");
    assert.equal(await shown(page, "away"), "Nothing.");
    assert.match(await shown(page, "deaths"), /the disk does not answer/);
    await sound(it, "loading");
    await page.unrouteAll({ behavior: "ignoreErrors" });
    await page.context().close();

    const context = await browser.newContext({ javaScriptEnabled: false, viewport: { width: 390, height: 844 } });
    const bare = await context.newPage();
    await bare.goto(base);
    assert.match(await bare.locator("body").innerText(), /scripts are off/);
    assert.equal(await bare.getByRole("link", { name: "/status" }).isVisible(), true);
    assert.equal(await bare.locator("#page").isVisible(), false);
    await context.close();
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...rest] = line.split(" ");
  const began = performance.now();
  try {
    await cases[name](rest);
    console.log(`ok ${line} ${Math.round(performance.now() - began)} ms`);
  } catch (error) {
    console.log(`fail ${line}: ${String(error.stack).replaceAll("\n", "\\n")}`);
  }
}
await browser.close();
