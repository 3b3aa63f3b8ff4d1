// Ordering: an upload with its progress, drafts that survive a reload, problems beside their fields.
"use strict";

import { keepTyped, notice } from "./portal.js";

function size(bytes) {
  const unit = bytes >= 1e9 ? [1e9, "GB"] : bytes >= 1e6 ? [1e6, "MB"] : [1e3, "kB"];
  return `${(bytes / unit[0]).toLocaleString(document.documentElement.lang, { maximumFractionDigits: 1 })} ${unit[1]}`;
}

function filled(text, values) {
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

// Heard by the document: a form that was refused comes as a new one.
const dropOf = (event) => event.target.closest?.("#drop");
document.addEventListener("change", ({ target }) => {
  if (target.id === "file" && target.files.length) send(target.form, target.files[0]);
});
// Chosen before this was there; what a browser fills in after a reload or on the way back was not.
const early = document.getElementById("file"), [came] = performance.getEntriesByType("navigation");
if (early?.files.length && came.type === "navigate") send(early.form, early.files[0]);
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    if (dropOf(event)) { event.preventDefault(); dropOf(event).classList.add("over"); }
  });
}
for (const name of ["dragleave", "drop"]) document.addEventListener(name, (event) => dropOf(event)?.classList.remove("over"));
document.addEventListener("drop", (event) => {
  if (!dropOf(event)) return;
  event.preventDefault();
  if (event.dataTransfer.files.length) send(document.getElementById("upload"), event.dataTransfer.files[0]);
});

// Puts an uploaded table among those that may be chosen, and chooses it.
function choose(choice, dataset) {
  if (![...choice.options].some((one) => one.value === dataset.digest)) choice.add(new Option(dataset.name, dataset.digest));
  choice.value = dataset.digest;
  choice.focus();
}

function send(form, file) {
  const { csrf, team, limit } = form.dataset;
  if (file.size === 0) { notice(form.dataset.empty); return; }
  if (file.size > Number(limit)) {
    notice(filled(form.dataset.tooLarge, { size: size(file.size), limit: size(Number(limit)) }));
    return;
  }
  const box = document.getElementById("progress"), bar = box.querySelector("progress");
  const text = document.getElementById("progress-text");
  const query = new URLSearchParams({ filename: file.name, team });
  const call = new XMLHttpRequest();
  box.hidden = false;
  call.open("POST", `/api/v1/datasets?${query}`);
  call.setRequestHeader("X-CSRF-Token", csrf);
  call.setRequestHeader("Content-Type", "application/octet-stream");
  call.upload.onprogress = (event) => {
    bar.value = event.loaded / file.size;
    text.textContent = filled(form.dataset.going, { done: size(event.loaded), all: size(file.size) });
  };
  call.upload.onload = () => { bar.removeAttribute("value"); text.textContent = form.dataset.checking; };
  const stop = (message) => { box.hidden = true; form.reset(); notice(message); };
  call.onerror = () => stop(form.dataset.stopped);
  call.onload = () => {
    let answer = {};
    try { answer = JSON.parse(call.responseText); } catch { /* told below */ }
    const choice = document.getElementById(form.dataset.chooses);
    if (call.status === 401 && choice) keepTyped(choice.form);
    if (call.status === 401) location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
    else if (call.status >= 400) stop([answer.error?.message, answer.error?.hint].filter(Boolean).join(" ") || form.dataset.stopped);
    else if (choice) { choose(choice, answer.dataset); form.reset(); text.textContent = form.dataset.there; bar.value = 1; }
    else location.assign(`/new/form?${new URLSearchParams(`${form.dataset.carried}&dataset=${answer.dataset.digest}`)}`);
  };
  call.send(file);
}

// --- the form -----------------------------------------------------------------------

const order = document.getElementById("order");
const never = new Set(["csrf", "key", "team", "dataset.upload", "recipe", "recipe_digest"]);
const recipe = order && new FormData(order).get("recipe");

function draftName(of = recipe) { return `draft:${order.dataset.draft}:${of}`; }

// What was typed, by the names of its fields; boxes that were not touched are those of the recipe.
function keepDraft(of, names) {
  const kept = [...new FormData(order)].filter(([name]) => !never.has(name) && (names?.has(name) ?? true));
  const boxes = [...order.elements].filter((one) => one.type === "checkbox" && (names?.has(one.name) ?? true));
  sessionStorage.setItem(draftName(of), JSON.stringify({ kept, boxes: [...new Set(boxes.map((one) => one.name))] }));
}

function isTyped(element) {
  if (element.type === "checkbox") return element.checked !== element.defaultChecked;
  if (element.options) return element.selectedOptions[0] !== ([...element.options].find((one) => one.defaultSelected) ?? element.options[0]);
  return element.value !== element.defaultValue;
}

function takeDraft() {
  let kept;
  try { kept = JSON.parse(sessionStorage.getItem(draftName()) ?? "null"); } catch { return; }
  if (!Array.isArray(kept?.kept) || document.querySelector("#notices .bad")) return;
  const values = new Map();
  for (const [name, value] of kept.kept) values.set(name, [...(values.get(name) ?? []), value]);
  for (const element of order.elements) {
    if (!element.name || never.has(element.name)) continue;
    if (element.type === "checkbox" && !kept.boxes.includes(element.name)) continue;
    if (element.type === "checkbox") element.checked = (values.get(element.name) ?? []).includes(element.value);
    else if (values.has(element.name)) element.value = values.get(element.name)[0];
  }
}

function showProblems() {
  for (const element of order.querySelectorAll("[data-wrong]")) {
    const said = [...document.querySelectorAll("#quote [data-problem]")].find(
      (one) => one.dataset.problem === element.dataset.wrong);
    const input = order.elements[element.dataset.wrong];
    element.hidden = !said;
    element.textContent = said ? said.textContent.replace(/^[^:]*:\s*/, "") : "";
    if (input?.setAttribute) input.toggleAttribute("aria-invalid", Boolean(said));
    if (said && input?.setAttribute) input.setAttribute("aria-invalid", "true");
  }
}

if (order) {
  takeDraft();
  // Who comes back to a form gets it as it was sent, with the recipe that it is for.
  window.addEventListener("pageshow", () => order.querySelectorAll("[name=recipe]").forEach((one) => { one.checked = one.defaultChecked; }));
  order.addEventListener("input", (event) => { if (event.target.name !== "recipe") keepDraft(); });
  order.addEventListener("change", (event) => {
    const reloads = event.target.dataset?.reloads;
    if (!reloads || event.target.value === recipe) return;
    // The form of another recipe has an address of its own, so that whoever signs in again comes back to it. It gets
    // what was typed; what nobody has touched is as the other recipe has it.
    const typed = [...order.elements].filter((one) => one.name && (order.dataset.typed || isTyped(one)));
    keepDraft(event.target.value, new Set(typed.map((one) => one.name)));
    const query = new URLSearchParams(location.search);
    for (const [name, value] of new URLSearchParams(order.dataset.here)) query.set(name, value);
    query.set("recipe", event.target.value);
    location.assign(`${reloads}?${query}`);
  });
  // Forgotten by the page of the request that comes of it: until then the order may be refused, or the session be over.
  order.addEventListener("submit", () => sessionStorage.setItem("draft-sent", draftName()));
  document.addEventListener("htmx:afterSwap", (event) => { if (event.detail.target.id === "quote") showProblems(); });
}
