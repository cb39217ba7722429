"use strict";
document.querySelectorAll("table[data-layers]").forEach(function (table) {
  var body = table.tBodies[0];
  var heads = Array.prototype.slice.call(table.tHead.rows[0].cells);
  var rows = Array.prototype.slice.call(body.rows);
  heads.forEach(function (head, column) {
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.textContent = "";
    head.appendChild(button);
    button.addEventListener("click", function () {
      var numeric = head.classList.contains("n");
      var old = head.getAttribute("aria-sort");
      var down = old ? old === "ascending" : numeric && column > 0;
      heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      var keyed = rows.map(function (row) {
        var cell = row.cells[column];
        return [numeric ? parseFloat(cell.getAttribute("data-v")) : cell.textContent.trim(), row];
      });
      keyed.sort(function (a, b) {
        if (!numeric) { return (down ? -1 : 1) * a[0].localeCompare(b[0], "en", { numeric: true }); }
        if (isNaN(a[0]) || isNaN(b[0])) { return isNaN(a[0]) - isNaN(b[0]); }
        return down ? b[0] - a[0] : a[0] - b[0];
      });
      keyed.forEach(function (pair) { body.appendChild(pair[1]); });
    });
  });
  var tools = table.closest("[data-box]").querySelector(".tools");
  var text = tools.querySelector("input");
  var kind = tools.querySelector("select");
  var shown = tools.querySelector("output");
  function filter() {
    var words = text.value.toLowerCase();
    var number = 0;
    rows.forEach(function (row) {
      var match = (!kind.value || row.getAttribute("data-kind") === kind.value) &&
        row.textContent.toLowerCase().indexOf(words) >= 0;
      row.hidden = !match;
      number += match ? 1 : 0;
    });
    shown.textContent = number + " of " + rows.length + " rows";
  }
  text.addEventListener("input", filter);
  kind.addEventListener("change", filter);
  tools.hidden = false;
  filter();
});
