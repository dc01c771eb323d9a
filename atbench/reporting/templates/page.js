// A click on a column's head, or Enter on it, sorts by data-v or, without one, by text; a second one reverses.
for (const button of document.querySelectorAll("table.sortable th button")) button.addEventListener("click", () => {
  const head = button.parentNode, body = head.closest("table").tBodies[0], column = head.cellIndex;
  const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const value = cell => cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  const key = row => value(row.cells[column]);
  const order = (a, b) => typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b))
                                                : (typeof a === "number" ? -1 : 1);
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
  body.append(...[...body.rows].sort((a, b) => way * order(key(a), key(b))));
});
// A link to a folded section opens it, and so does printing.
const details = [...document.querySelectorAll("details")];
const reveal = () => { const at = details.find(one => "#" + one.id === location.hash); if (at) at.open = true; };
addEventListener("hashchange", reveal);
addEventListener("beforeprint", () => { for (const one of details) one.open = true; });
reveal();
