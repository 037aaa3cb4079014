// Tables sort by a click on a head, both ways; what is unknown stays last.
function sortable(table) {
  const body = one("tbody", table), heads = all("thead th", table);
  const key = (row, column) => row.children[column].dataset.sort;
  function compare(a, b) {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
  }
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = all("tr", body), known = (row) => key(row, column) !== undefined && key(row, column) !== "";
      const sorted = rows.filter(known).sort((a, b) => compare(key(a, column), key(b, column)));
      if (down) sorted.reverse();
      body.replaceChildren(...sorted, ...rows.filter((row) => !known(row)));
    });
  });
}
