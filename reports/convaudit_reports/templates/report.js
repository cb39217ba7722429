"use strict";
// Sorts and filters tables, and opens what a link or the printer asks for. The page reads without it.
function sortable(table) {
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  const rows = Array.from(body.rows);
  const layers = table.hasAttribute("data-layers");
  heads.forEach(function (head, column) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", function () {
      const numeric = head.classList.contains("n");
      const old = head.getAttribute("aria-sort");
      const down = old ? old === "ascending" : numeric && !(layers && column === 0);
      heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const inOrder = layers && column === 0 && !down;
      if (layers) { table.closest("[data-box]").dataset.sorted = inOrder ? "" : "yes"; }
      const sums = rows.filter(function (row) { return row.classList.contains("sum"); });
      const keyed = rows.filter(function (row) { return !sums.includes(row); }).map(function (row) {
        const cell = row.cells[column];
        const text = cell.dataset.v || cell.textContent.trim();
        return [numeric ? parseFloat(text.replaceAll(",", "")) : text, row];
      });
      keyed.sort(function (a, b) {
        if (!numeric) { return (down ? -1 : 1) * a[0].localeCompare(b[0], "en", { numeric: true }); }
        if (isNaN(a[0]) || isNaN(b[0])) { return isNaN(a[0]) - isNaN(b[0]); }
        return down ? b[0] - a[0] : a[0] - b[0];
      });
      body.append(...(inOrder ? rows : keyed.map(function (pair) { return pair[1]; }).concat(sums)));
      table.dispatchEvent(new Event("sorted"));
    });
  });
}
function filterable(box) {
  const table = box.querySelector("table");
  const rows = Array.from(table.tBodies[0].rows).filter(function (row) { return !row.classList.contains("sum"); });
  const text = box.querySelector("input[type=search]");
  const kind = box.querySelector("select");
  const unfold = box.querySelector(".unfold");
  const shown = box.querySelector("output");
  const contents = rows.map(function (row) { return row.textContent.toLowerCase(); });
  function filter() {
    const words = text.value.trim().toLowerCase();
    const flat = Boolean(words || kind.value || box.dataset.sorted);
    let number = 0;
    box.classList.toggle("flat", flat);
    rows.forEach(function (row, index) {
      row.hidden = !((!kind.value || row.dataset.kind === kind.value) && contents[index].includes(words));
      const folded = row.classList.contains("more") && !flat && !(unfold && unfold.checked);
      number += row.hidden || folded ? 0 : 1;
    });
    shown.textContent = shown.dataset.form.replace("{shown}", number).replace("{all}", rows.length);
  }
  text.addEventListener("input", filter);
  kind.addEventListener("change", filter);
  table.addEventListener("sorted", filter);
  if (unfold) { unfold.addEventListener("change", filter); }
  box.querySelectorAll(".scripted").forEach(function (tool) { tool.hidden = false; });
  filter();
}
function reveal() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (!target) { return; }
  for (let at = target; at; at = at.parentElement) {
    if (at.tagName === "DETAILS") { at.open = true; }
  }
  target.scrollIntoView();
}
let closed = [];
addEventListener("beforeprint", function () {
  closed = Array.from(document.querySelectorAll("details:not([open])"));
  closed.forEach(function (details) { details.open = true; });
});
addEventListener("afterprint", function () {
  closed.forEach(function (details) { details.open = false; });
});
addEventListener("hashchange", reveal);
document.querySelectorAll("table[data-sort]").forEach(sortable);
document.querySelectorAll("[data-box]").forEach(filterable);
reveal();
