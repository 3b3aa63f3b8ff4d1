// A request while it is worked on: its events and trials come as a stream, and change the page where it stands.
"use strict";

import { chartOptions, drawChart, drawCharts, legendOf, loadPlotly, notice, showTimes } from "./portal.js";

const language = document.documentElement.lang;
const AGAIN_MS = 4000, MOST_AGAIN_MS = 30000;
const LEADERS = 12;
let source;
let trials = new Map();
let waiting;
let rendered = performance.now();

const live = () => document.getElementById("live");

if (new URL(document.referrer || location.href).pathname.startsWith("/new")) {
  // What was ordered is here: its draft is not needed any more.
  sessionStorage.removeItem(sessionStorage.getItem("draft-sent") ?? "");
  sessionStorage.removeItem("draft-sent");
}

// --- numbers, as the server writes them ---------------------------------------------

const digits = (value) => {
  const whole = Math.abs(value) >= 1 ? String(Math.trunc(Math.abs(value))).length : 0;
  return value.toLocaleString(language, { minimumFractionDigits: Math.max(4 - whole, 0), maximumFractionDigits: Math.max(4 - whole, 0) });
};

const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const inUnit = (value, unit) => value.toLocaleString(language, { style: "unit", unit, unitDisplay: "short", maximumFractionDigits: 1 });

function duration(seconds) {
  if (seconds < 10) return inUnit(seconds, "second");
  let left = Math.round(seconds);
  const parts = [];
  for (const [unit, size] of UNITS) {
    const n = Math.floor(left / size);
    left %= size;
    if (n || parts.length) parts.push([n, unit]);
  }
  const shown = parts.slice(0, 2).filter(([n]) => n).map(([n, unit]) => inUnit(n, unit));
  return new Intl.ListFormat(language, { type: "unit" }).format(shown);
}

function money(amount, currency) {
  if (amount && amount < 1) return `${amount.toLocaleString(language, { maximumFractionDigits: 4 })} ${currency}`;
  return amount.toLocaleString(language, { style: "currency", currency });
}

function clock() {
  const shown = document.getElementById("runs");
  if (shown?.dataset.runs !== "yes") return;
  const passed = (performance.now() - rendered) / 1000, seconds = Number(shown.dataset.held) + passed;
  shown.textContent = duration(Math.floor(seconds));
  const { hourly, currency } = live().dataset, cost = document.getElementById("money");
  cost.textContent = money(Number(cost.dataset.money) + (passed * Number(hourly)) / 3600, currency);
  const expected = Number(shown.dataset.expected), left = document.getElementById("left");
  if (left) left.textContent = duration(Math.max(0, Math.round(expected - seconds)));
  const bar = document.getElementById("done");
  if (bar) bar.style.width = `${Math.min(100, (100 * seconds) / expected)}%`;
}

// --- trials: put into the chart and the leaderboard, nothing is fetched ----------------

function take(trial) {
  if (trial.segment) return;
  trials.set(trial.number, trial);
  waiting ??= setTimeout(() => { waiting = undefined; show(); }, 400);
}

async function show() {
  const figure = document.getElementById("scores");
  if (!figure) { reloadSoon(); return; }
  const fresh = [...trials.values()];
  const count = document.getElementById("n-trials");
  count.dataset.n = Math.max(Number(count.dataset.n), ...fresh.map((one) => one.number + 1));
  count.textContent = Number(count.dataset.n).toLocaleString(language);
  rank(fresh.filter((one) => one.score !== null && one.state === "succeeded"));
  const Plotly = await loadPlotly();
  if (!figure.data) { if (!figure.offsetParent) return; await drawChart(figure); }
  for (const trial of fresh) point(figure, trial);
  trials = new Map();
  lead(figure);
  await Plotly.react(figure, figure.data, { ...figure.layout, datarevision: Date.now() }, chartOptions);
  legendOf(figure);
}

const FAILED = ["failed", "killed", "out_of_memory"];
const lookOf = (family) => JSON.parse(document.getElementById("looks").textContent)[family];

function point(figure, trial) {
  const failed = FAILED.includes(trial.state), pruned = trial.state === "pruned";
  if (trial.score === null && !failed && !pruned) return;
  for (const trace of figure.data) drop(trace, trial.number);
  let trace = figure.data.find((one) => (trial.score === null ? one.meta?.lost === (failed ? "failed" : "pruned") : one.meta?.family === trial.family));
  if (!trace) {
    const look = lookOf(trial.family) ?? { name: trial.family, colour: "#64707d", symbol: "circle", path: "" };
    trace = {
      type: "scatter", mode: "markers", name: look.name, meta: { family: trial.family, path: look.path }, x: [], y: [], text: [],
      hovertemplate: "%{y:.5g}<extra>%{fullData.name} #%{x}</extra>", marker: { size: 8, color: look.colour, symbol: [] },
    };
    figure.data.splice(-1, 0, trace);
  }
  trace.x.push(trial.number);
  trace.y.push(trial.score ?? 0.015);
  trace.text.push(trial.score === null ? trial.family : "");
  if (trial.score === null) { trace.showlegend = true; return; }
  const symbol = lookOf(trial.family)?.symbol ?? "circle";
  trace.marker.symbol.push(failed ? "x-thin-open" : pruned ? `${symbol}-open` : symbol);
}

function drop(trace, number) {
  const at = trace.mode === "markers" ? trace.x.indexOf(number) : -1;
  if (at < 0) return;
  for (const list of [trace.x, trace.y, trace.text, trace.marker.symbol]) list.splice?.(at, 1);
}

function lead(figure) {
  const line = figure.data.at(-1);
  const known = line.x.slice(0, -1).map((x, i) => [x, line.y[i]]);
  const fresh = figure.data.filter((one) => one.meta?.family && one !== line)
    .flatMap((one) => one.x.map((x, i) => [x, one.y[i], one.marker.symbol[i]]))
    .filter(([, , symbol]) => !/open/.test(symbol));
  const points = [...known, ...fresh].sort((a, b) => a[0] - b[0]);
  line.x = []; line.y = [];
  let best = -Infinity;
  for (const [x, y] of points) if (y > best) { best = y; line.x.push(x); line.y.push(y); }
  if (!line.x.length) return;
  line.x.push(Math.max(...figure.data.flatMap((one) => one.x)));
  line.y.push(best);
}

function rank(scored) {
  const body = document.querySelector("#leaders tbody"), pattern = document.getElementById("leader").content.firstElementChild;
  for (const trial of scored) {
    let row = body.querySelector(`[data-trial="${trial.number}"]`);
    if (!row) {
      const look = lookOf(trial.family);
      row = pattern.cloneNode(true);
      row.dataset.trial = trial.number;
      row.querySelector("path").setAttribute("d", look?.path ?? "");
      row.querySelector("path").setAttribute("fill", look?.colour ?? "");
      const [name, number] = row.cells[0].querySelectorAll("span");
      name.textContent = look?.name ?? trial.family;
      number.textContent = `#${trial.number}`;
    }
    row.cells[1].textContent = digits(trial.score);
    row.cells[1].dataset.score = trial.score;
    row.cells[2].textContent = trial.n_folds;
    row.cells[3].textContent = duration(trial.cost_s);
    // Its place: rows that stand still are not moved, so that nobody's focus is lost.
    const next = [...body.rows].find((one) => one !== row && Number(one.cells[1].dataset.score) < trial.score);
    if (row.parentNode !== body || row.nextElementSibling !== (next ?? null)) body.insertBefore(row, next ?? null);
  }
  while (body.rows.length > LEADERS) body.lastElementChild.remove();
  if (body.rows.length) document.getElementById("best").textContent = digits(Number(body.rows[0].cells[1].dataset.score));
}

// --- what else changes: fetched, at most every few seconds -----------------------------

let soon, wait = AGAIN_MS, away = false, late = false;

function reloadSoon(after = AGAIN_MS) { soon ??= setTimeout(() => { soon = undefined; reload(); }, after); }

function tell(text, address, name) {
  const box = notice(text, "warn");
  if (!address) return;
  const link = document.createElement("a");
  link.href = address;
  link.textContent = name;
  box.append(link);
}

function lost() {
  if (!away) tell(live().dataset.away.replace("{time}", new Date().toLocaleTimeString(language, { timeStyle: "short" })));
  away = true;
  reloadSoon(wait);
  wait = Math.min(2 * wait, MOST_AGAIN_MS);
}

async function reload() {
  if (document.hidden) { late = true; return; }
  let answer, text;
  try {
    answer = await fetch(`${location.pathname}/live`, { headers: { accept: "text/html", "hx-request": "true" } });
    text = await answer.text();
  } catch { lost(); return; }
  if (answer.status === 401) {
    tell(live().dataset.signedOut, `/sign-in?${new URLSearchParams({ next: location.pathname })}`, live().dataset.signIn);
    source?.close();
    return;
  }
  if (!answer.ok) { lost(); return; }
  const page = new DOMParser().parseFromString(text, "text/html");
  const fresh = page.getElementById("live");
  if (!fresh) return;
  if (away) document.getElementById("notices").replaceChildren();
  [away, wait] = [false, AGAIN_MS];
  put(live(), fresh);
  // A form that asks whether it is meant stays until that is answered.
  if (document.querySelector("dialog[open]")) document.querySelector("dialog[open]").addEventListener("close", () => reloadSoon(), { once: true });
  else put(document.querySelector("main .head"), page.querySelector(".head"));
  rendered = performance.now();
  clock();
  if (live().dataset.open === "no") source?.close();
  else if (source?.readyState === EventSource.CLOSED) follow();
}

// Puts a new part in the place of an old one; focus, what is open, what was scrolled and what is drawn stay.
function put(old, fresh) {
  const focused = old.contains(document.activeElement) ? placeOf(document.activeElement, old) : undefined;
  const scrolled = [...old.querySelectorAll("*")].filter((one) => one.scrollTop || one.scrollLeft)
    .map((one) => [placeOf(one, old), one.scrollTop, one.scrollLeft]);
  const opened = [...old.querySelectorAll("details[open]")].map((one) => one.querySelector("summary").textContent);
  old.replaceWith(fresh);
  for (const one of fresh.querySelectorAll("details")) one.open ||= opened.includes(one.querySelector("summary").textContent);
  for (const chart of fresh.querySelectorAll(".chart[id]")) {
    const drawn = old.querySelector(`#${chart.id}`);
    if (!drawn?.data) continue;
    chart.replaceWith(drawn);
    drawChart(drawn);
  }
  for (const [place, top, left] of scrolled) at(place, fresh)?.scrollTo(left, top);
  if (focused) at(focused, fresh)?.focus({ preventScroll: true });
  showTimes(fresh);
  drawCharts(fresh);
}

// Where an element stands: its id, or the way to it from the part that it is in.
function placeOf(element, root) {
  if (element.id) return element.id;
  const steps = [];
  for (let one = element; one !== root; one = one.parentElement) steps.unshift([...one.parentElement.children].indexOf(one));
  return steps;
}

function at(place, root) {
  if (typeof place === "string") return root.querySelector(`[id="${CSS.escape(place)}"]`);
  return place.reduce((one, k) => one?.children[k], root);
}

function follow() {
  const { request, after, since } = live().dataset;
  const query = new URLSearchParams({ after, trials: "true", trials_since: since });
  source?.close();
  source = new EventSource(`/api/v1/requests/${encodeURIComponent(request)}/events?${query}`);
  source.addEventListener("trial", (event) => take(JSON.parse(event.data)));
  for (const kind of ["state", "attempt", "cancel", "preempt", "preempted", "fault", "search", "segment", "storage"]) {
    source.addEventListener(kind, () => reloadSoon(kind === "state" ? 200 * Math.random() : AGAIN_MS));
  }
  // A portal that is down ends the stream; what happened meanwhile is fetched once it is there again.
  source.addEventListener("error", () => reloadSoon(source.readyState === EventSource.CLOSED ? AGAIN_MS : 1000));
}

if (live()?.dataset.open === "yes") {
  follow();
  setInterval(clock, 1000);
  clock();
  document.addEventListener("visibilitychange", () => { if (!document.hidden && late) { late = false; reload(); } });
}
