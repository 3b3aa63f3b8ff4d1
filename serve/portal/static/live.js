// A request while it is worked on: its events and trials come as a stream, and change the page where it stands.
"use strict";

import { chartOptions, drawChart, loadPlotly, showTimes } from "./portal.js";

const language = document.documentElement.lang;
let source;
let trials = new Map();
let waiting;

const live = () => document.getElementById("live");

if (new URL(document.referrer || location.href).pathname.startsWith("/new")) {
  // What was ordered is here: its draft is not needed any more.
  sessionStorage.removeItem(sessionStorage.getItem("draft-sent") ?? "");
  sessionStorage.removeItem("draft-sent");
}

const digits = (value) => {
  const whole = Math.abs(value) >= 1 ? String(Math.trunc(Math.abs(value))).length : 0;
  return value.toLocaleString(language, { minimumFractionDigits: Math.max(4 - whole, 0), maximumFractionDigits: Math.max(4 - whole, 0) });
};

function clock() {
  const shown = document.getElementById("runs");
  if (!shown?.dataset.began) return;
  const seconds = Math.max(0, (Date.now() - Date.parse(shown.dataset.began)) / 1000);
  const [minutes, rest] = [Math.floor(seconds / 60), Math.floor(seconds % 60)];
  shown.textContent = `${minutes}:${String(rest).padStart(2, "0")}`;
  const bar = document.getElementById("done");
  if (bar) bar.style.width = `${Math.min(100, (100 * seconds) / Number(shown.dataset.expected))}%`;
}

function take(trial) {
  if (trial.segment) return;
  trials.set(trial.number, trial);
  waiting ??= setTimeout(() => { waiting = undefined; show(); }, 400);
}

async function show() {
  const figure = document.getElementById("scores");
  if (!figure) { await reload(); return; }
  document.getElementById("n-trials").textContent = Math.max(...trials.keys()) + 1;
  const scored = [...trials.values()].filter((one) => one.score !== null && one.state === "succeeded");
  rank(scored);
  const Plotly = await loadPlotly();
  if (!figure.data) await drawChart(figure);
  for (const trial of scored) point(figure, trial);
  lead(figure);
  await Plotly.react(figure, figure.data, { ...figure.layout, datarevision: Date.now() }, chartOptions);
}

function point(figure, trial) {
  const trace = figure.data.find((one) => one.meta === trial.family);
  if (!trace) { reloadSoon(); return; }
  const at = trace.x.indexOf(trial.number);
  if (at >= 0) { trace.y[at] = trial.score; return; }
  trace.x.push(trial.number);
  trace.y.push(trial.score);
  trace.text?.push?.("");
  trace.marker.symbol?.push?.("circle");
}

function lead(figure) {
  const line = figure.data.find((one) => one.meta === "best");
  const points = figure.data.filter((one) => one !== line).flatMap((one) => one.x.map((x, i) => [x, one.y[i]]));
  points.sort((a, b) => a[0] - b[0]);
  line.x = []; line.y = [];
  let best = -Infinity;
  for (const [x, y] of points) if (y > best) { best = y; line.x.push(x); line.y.push(y); }
  if (points.length) { line.x.push(points.at(-1)[0]); line.y.push(best); }
  document.getElementById("best").textContent = digits(best);
}

function rank(scored) {
  const body = document.querySelector("#leaders tbody");
  for (const trial of scored) {
    const row = body.querySelector(`[data-trial="${trial.number}"]`);
    if (row) {
      row.cells[1].textContent = digits(trial.score);
      row.cells[1].dataset.score = trial.score;
      row.cells[2].textContent = trial.n_folds;
    }
  }
  if (scored.some((one) => !body.querySelector(`[data-trial="${one.number}"]`))) reloadSoon();
}

let soon;
function reloadSoon() { soon ??= setTimeout(() => { soon = undefined; reload(); }, 4000); }

async function reload() {
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = page.getElementById("live");
  if (!fresh) return;
  const opened = [...live().querySelectorAll("details[open]")].map((one) => one.querySelector("summary").textContent);
  live().replaceWith(fresh);
  for (const one of fresh.querySelectorAll("details")) one.open = opened.includes(one.querySelector("summary").textContent);
  document.querySelector("main .head").replaceWith(page.querySelector("main .head"));
  trials = new Map();
  showTimes(fresh);
  for (const chart of fresh.querySelectorAll(".chart[data-figure]")) drawChart(chart);
  clock();
  if (fresh.dataset.open === "no") source?.close();
}

function follow() {
  const { request, after, since } = live().dataset;
  const query = new URLSearchParams({ after, trials: "true", trials_since: since });
  source = new EventSource(`/api/v1/requests/${encodeURIComponent(request)}/events?${query}`);
  source.addEventListener("trial", (event) => take(JSON.parse(event.data)));
  for (const kind of ["state", "attempt", "cancel", "preempt", "preempted", "fault", "search", "segment", "storage"]) {
    source.addEventListener(kind, () => (kind === "state" ? reload() : reloadSoon()));
  }
}

if (live()?.dataset.open === "yes") {
  follow();
  setInterval(clock, 1000);
  clock();
}

document.addEventListener("input", (event) => {
  if (!event.target.matches("[data-searches]")) return;
  const text = document.getElementById(event.target.dataset.searches);
  text.dataset.all ??= text.textContent;
  const wanted = event.target.value.toLowerCase();
  const lines = text.dataset.all.split("\n").filter((line) => line.toLowerCase().includes(wanted));
  text.textContent = lines.join("\n");
  document.getElementById("log-found").textContent = wanted ? lines.length.toLocaleString(language) : "";
});
