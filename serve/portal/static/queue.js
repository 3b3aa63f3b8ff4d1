// The queue: a row that is dragged to another priority is given it, by the form that the row has for it.
"use strict";

let dragged;

for (const row of document.querySelectorAll("tr[draggable]")) {
  row.addEventListener("dragstart", (event) => {
    dragged = row;
    event.dataTransfer.effectAllowed = "move";
    event.dataTransfer.setData("text/plain", row.querySelector("a").textContent);
    row.classList.add("dragged");
  });
  row.addEventListener("dragend", () => { row.classList.remove("dragged"); dragged = undefined; });
}

for (const group of document.querySelectorAll("tbody[data-priority]")) {
  group.addEventListener("dragover", (event) => {
    if (!dragged) return;
    event.preventDefault();
    group.classList.add("over");
  });
  group.addEventListener("dragleave", (event) => {
    if (!group.contains(event.relatedTarget)) group.classList.remove("over");
  });
  group.addEventListener("drop", (event) => {
    event.preventDefault();
    group.classList.remove("over");
    const choice = dragged?.querySelector("select[name=priority]");
    if (!choice || choice.value === group.dataset.priority) return;
    choice.value = group.dataset.priority;
    choice.form.requestSubmit();
  });
}
