// What every page does beyond HTML: times in the reader's zone, charts, copying, menus, questions before what cannot
// be undone. Without it all pages still work.
"use strict";

const language = document.documentElement.lang;
const exact = new Intl.DateTimeFormat(language, { dateStyle: "full", timeStyle: "long" });
const short = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" });
const hour = new Intl.DateTimeFormat(language, { timeStyle: "short" });
const relative = new Intl.RelativeTimeFormat(language, { numeric: "auto" });

export function toldTime(moment, now) {
  const past = (now - moment) / 1000;
  const size = Math.abs(past);
  if (size < 50) return relative.format(-Math.round(past), "second");
  if (size < 3000) return relative.format(-Math.round(past / 60), "minute");
  if (size < 86400 && moment.toDateString() === now.toDateString()) return hour.format(moment);
  return short.format(moment);
}

// The page is told the reader's zone, so that what it writes of times is what this would write: nothing moves then.
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
document.cookie = `factory_zone=${zone}; path=/; max-age=31536000; samesite=lax`;

export function showTimes(root = document, told = false) {
  const now = new Date();
  for (const element of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(element.dateTime);
    if (Number.isNaN(moment.valueOf())) continue;
    element.title = exact.format(moment);
    if (!told) element.textContent = toldTime(moment, now);
  }
}

// --- charts ---------------------------------------------------------------------

let plotly;

export function loadPlotly() {
  plotly ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = document.querySelector("meta[name=plotly]").content;
    script.onload = () => done(window.Plotly);
    script.onerror = failed;
    document.head.append(script);
  });
  return plotly;
}

const NARROW = 480;
const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function themed(layout, width = Infinity) {
  const line = colourOf("--line"), text = colourOf("--text"), muted = colourOf("--muted");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, tickfont: { color: muted }, automargin: true };
  const result = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", separators: language === "de" ? ",." : ".,",
    font: { family: colourOf("--font"), size: 13, color: text }, margin: { l: 50, r: 12, t: 12, b: 44 },
    hoverlabel: { bgcolor: colourOf("--surface"), bordercolor: line, font: { color: text } },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { color: text } }, ...layout,
    // On a phone the names would take more room than the chart: they stand below it, see legendOf.
    ...(width < NARROW ? { showlegend: false } : {}),
  };
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key)).concat("xaxis", "yaxis")) {
    result[name] = { ...axis, ...layout[name] };
  }
  return result;
}

export const chartOptions = { displaylogo: false, responsive: true, displayModeBar: false };

// Plotly draws moments as they are written: in the reader's zone, then.
function here(moment) {
  const date = new Date(moment);
  return new Date(date - date.getTimezoneOffset() * 60000).toISOString().slice(0, -1);
}

export async function drawChart(element) {
  const source = document.getElementById(element.dataset.figure);
  if (!source) return;
  const figure = JSON.parse(source.textContent);
  const axis = figure.layout?.xaxis;
  if (axis?.type === "date") {
    axis.range = axis.range?.map(here);
    figure.data.forEach((trace) => { trace.x = trace.x.map(here); });
  }
  const Plotly = await loadPlotly();
  await Plotly.react(element, figure.data, themed(figure.layout ?? {}, element.clientWidth), chartOptions);
  legendOf(element);
  element.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
}

const SVG = "http://www.w3.org/2000/svg";

// What the marks mean, below a chart that is too narrow for it.
export function legendOf(element) {
  let list = element.nextElementSibling;
  if (!list?.matches("ul.legend")) element.after(list = Object.assign(document.createElement("ul"), { className: "legend" }));
  list.hidden = element.clientWidth >= NARROW;
  list.replaceChildren(...element.data.filter((trace) => trace.name && trace.showlegend !== false).map((trace) => {
    const [line, mark, path] = ["li", "svg", "path"].map((tag) => tag === "li" ? document.createElement(tag) : document.createElementNS(SVG, tag));
    const colour = trace.marker?.color ?? trace.line?.color;
    for (const [name, value] of Object.entries({ viewBox: "0 0 10 10", class: "dot-of", "aria-hidden": "true" })) mark.setAttribute(name, value);
    const drawn = trace.meta?.path || (trace.mode === "lines" ? "M0 5h10" : "M5 .5a4.5 4.5 0 1 0 .01 0z");
    for (const [name, value] of Object.entries({ d: drawn, fill: colour, stroke: colour })) path.setAttribute(name, value);
    mark.append(path);
    line.append(mark, ` ${trace.name}`);
    return line;
  }));
}

// A chart in a folded part has no width: it is drawn, or fitted, once that is opened.
document.addEventListener("toggle", async (event) => {
  if (!event.target.open) return;
  for (const chart of event.target.querySelectorAll(".chart.js-plotly-plot")) (await loadPlotly()).Plots.resize(chart);
}, true);

export function drawCharts(root = document) {
  const charts = [...root.querySelectorAll(".chart[data-figure]")];
  if (!charts.length) return;
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      seen.unobserve(entry.target);
      drawChart(entry.target);
    }
  }, { rootMargin: "1500px" });
  charts.forEach((chart) => seen.observe(chart));
}

// --- messages --------------------------------------------------------------------

export function notice(text, kind = "bad") {
  const box = document.getElementById("notices");
  const element = document.createElement("div");
  element.className = `notice ${kind}`;
  element.role = kind === "bad" ? "alert" : "status";
  element.textContent = text;
  box.replaceChildren(element);
  return element;
}

// --- questions ---------------------------------------------------------------------

function ask(form) {
  const dialog = document.getElementById("question");
  dialog.querySelector("p").textContent = form.dataset.question;
  dialog.querySelector("button[value=yes]").textContent = form.dataset.yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
  });
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (form.dataset.question && !form.dataset.answered) {
    event.preventDefault();
    event.stopImmediatePropagation();
    if (await ask(form)) {
      form.dataset.answered = "yes";
      form.requestSubmit(event.submitter ?? undefined);
    }
    return;
  }
  // A second click must not send it twice; the page that answers has new buttons.
  if (form.method === "post") {
    if (form.dataset.sent) { event.preventDefault(); event.stopImmediatePropagation(); return; }
    form.dataset.sent = "yes";
    setTimeout(() => form.querySelectorAll("button").forEach((button) => button.setAttribute("aria-busy", "true")));
    if (isSmall(form)) { event.preventDefault(); send(form, event.submitter); }
  }
}, true);

// --- small forms: sent without leaving the page, which keeps what was typed where it is refused --------

const isSmall = (form) => !form.matches("[hx-post], [data-plain], [enctype='multipart/form-data'], #order, .alone form");
const current = () => location.pathname + location.search;

async function send(form, submitter) {
  const place = submitter?.getAttribute("formaction") ?? form.getAttribute("action");
  const sent = new URLSearchParams([...new FormData(form, submitter)].filter(([, value]) => typeof value === "string"));
  let answer, text;
  try {
    const headers = { accept: "text/html", "hx-request": "true", "hx-current-url": location.href };
    answer = await fetch(place, { method: "POST", body: sent, headers });
    text = await answer.text();
  } catch {
    notice(document.body.dataset.unreachable);
    fresh(document);
    return;
  }
  const to = answer.headers.get("hx-redirect");
  if (answer.status === 401) keepTyped(form);
  if (to) { location.assign(to); return; }
  if (answer.redirected) { location.assign(answer.url); return; }
  fresh(document);
  const page = new DOMParser().parseFromString(text, "text/html"), whole = page.querySelector("main");
  // A refusal may come as the page itself, as it is by now and with what was typed.
  if (whole) {
    document.querySelector("main").replaceWith(whole);
    window.htmx?.process(whole);
    begin();
    scrollTo(0, 0);
    whole.querySelector("[aria-invalid=true]")?.focus();
    return;
  }
  document.getElementById("notices").replaceChildren(...page.body.childNodes);
  (tellWrong(form) ?? document.getElementById("notices")).scrollIntoView({ block: "nearest" });
}

// Puts what is wrong beside the fields; the first of them gets the focus.
function tellWrong(form) {
  form.querySelectorAll(".wrong[data-told]").forEach((one) => one.remove());
  form.querySelectorAll("[aria-invalid]").forEach((one) => one.removeAttribute("aria-invalid"));
  let first;
  for (const problem of document.querySelectorAll("#notices [data-problem]")) {
    const name = problem.dataset.problem.split(/[/.]/).filter((step) => step && !/^\d+$/.test(step)).at(-1);
    const field = name && form.querySelector(`[name="${CSS.escape(name)}"]:not([type=hidden])`);
    if (!field) continue;
    const told = Object.assign(document.createElement("span"), { className: "wrong", id: `wrong-${name}`, textContent: problem.textContent });
    told.dataset.told = "yes";
    (field.closest(".field, fieldset") ?? field.parentElement).append(told);
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", told.id);
    first ??= field;
  }
  first?.focus();
  return first;
}

// Whose session had ended comes back to the form as it was sent.
export function keepTyped(form) {
  const typed = [...new FormData(form)].filter(([, value]) => typeof value === "string");
  sessionStorage.setItem(`typed:${current()}`, JSON.stringify([form.getAttribute("action"), typed]));
}

function takeTyped() {
  const kept = sessionStorage.getItem(`typed:${current()}`);
  if (!kept || !document.querySelector(".frame")) return;
  sessionStorage.removeItem(`typed:${current()}`);
  const [action, values] = JSON.parse(kept);
  const form = document.querySelector(`form[action="${CSS.escape(action)}"]`);
  for (const [name, value] of values) {
    const field = form?.querySelector(`[name="${CSS.escape(name)}"]:not([type=hidden])`);
    if (field?.type === "radio") form.elements[name].value = value;
    else if (field && field.type !== "checkbox") field.value = value;
  }
  form?.querySelectorAll("[type=checkbox]").forEach((box) => {
    box.checked = values.some(([name, value]) => name === box.name && value === box.value);
  });
  const folded = form?.closest("details");
  if (folded) folded.open = true;
}

function fresh(root) {
  for (const form of root.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
    delete form.dataset.answered;
    form.querySelectorAll("button").forEach((button) => button.removeAttribute("aria-busy"));
  }
}

// --- small things ---------------------------------------------------------------------

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.matches("[data-copies]")) {
    const said = button.textContent;
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copies).textContent);
    button.textContent = button.dataset.copied;
    setTimeout(() => { button.textContent = said; }, 1500);
  } else if (button.matches(".menu-open")) {
    button.setAttribute("aria-expanded", String(button.getAttribute("aria-expanded") !== "true"));
  }
});

// The lines of a log with what is looked for.
document.addEventListener("input", (event) => {
  if (!event.target.matches("[data-searches]")) return;
  const text = document.getElementById(event.target.dataset.searches);
  text.dataset.all ??= text.textContent;
  const wanted = event.target.value.toLowerCase();
  const lines = text.dataset.all.split("\n").filter((line) => line.toLowerCase().includes(wanted));
  text.textContent = lines.join("\n");
  document.getElementById("log-found").textContent = wanted ? lines.length.toLocaleString(language) : "";
});

// A choice that is sent by itself: at once where it was pointed at; by keys, which walk through all that there is,
// once it is left or Enter is pressed.
const walked = new WeakSet(), waits = new WeakSet();

function choose(choice) {
  waits.delete(choice);
  choice.form.requestSubmit();
}

document.addEventListener("pointerdown", (event) => walked.delete(event.target));
document.addEventListener("keydown", (event) => {
  const choice = event.target;
  if (!choice.matches?.("[data-submits]")) return;
  if (event.key !== "Enter") { walked.add(choice); return; }
  walked.delete(choice);
  if (waits.has(choice)) { event.preventDefault(); choose(choice); }
});
document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-submits]")) return;
  if (walked.has(event.target)) waits.add(event.target);
  else choose(event.target);
});
document.addEventListener("focusout", (event) => { if (waits.has(event.target)) choose(event.target); });

function begin(root = document) {
  showTimes(root, document.documentElement.dataset.zone === zone);
  drawCharts(root);
}

begin();
takeTyped();
setInterval(() => showTimes(), 20000);
window.addEventListener("pageshow", () => fresh(document));
document.addEventListener("htmx:afterSettle", (event) => begin(event.detail.elt));
document.addEventListener("htmx:afterRequest", (event) => fresh(event.detail.elt.ownerDocument));
let unreachable;
document.addEventListener("htmx:sendError", () => { unreachable = notice(document.body.dataset.unreachable); });
document.addEventListener("htmx:afterOnLoad", () => unreachable?.remove());
document.addEventListener("htmx:beforeSwap", (event) => {
  // A part that says what is wrong is put into the page like any other.
  if ([400, 403, 404, 409, 412, 422, 429, 500, 503].includes(event.detail.xhr.status)) {
    event.detail.shouldSwap = true;
    event.detail.isError = false;
  }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  document.querySelectorAll(".chart.js-plotly-plot").forEach(drawChart);
});
