"use strict";
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const show = (event) => {
    const mark = event.target.closest?.("[data-tip]");
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const right = Math.min(event.pageX + 14, scrollX + document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = Math.max(scrollX + 8, right) + "px";
    tip.style.top = event.pageY - tip.offsetHeight - 12 + "px";
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);

  const table = document.querySelector("#cells");
  if (!table) return;
  const body = table.tBodies[0];
  const value = (row, column) => {
    const field = row.cells[column];
    return field.dataset.v === undefined ? field.textContent : Number(field.dataset.v);
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  const sort = (header) => {
    const column = header.cellIndex;
    const numeric = header.classList.contains("n");
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const absent = (entry) => numeric && typeof entry.key !== "number";
    const rows = [...body.rows].map((row) => ({ row, key: value(row, column) }));
    rows.sort((a, b) => absent(a) - absent(b) || (down ? compare(b.key, a.key) : compare(a.key, b.key)));
    body.append(...rows.map((entry) => entry.row));
  };
  for (const header of table.tHead.rows[0].cells) header.addEventListener("click", () => sort(header));

  const search = document.querySelector("#filter");
  const shown = document.querySelector("#shown");
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      count += !row.hidden;
    }
    shown.textContent = count.toLocaleString("en");
  });
})();
