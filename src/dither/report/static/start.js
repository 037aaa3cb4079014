// Bring the page to life.
const articles = all("article"), data = JSON.parse(one("#data").textContent);
all(".comparer").forEach(comparer);
all("table.sortable").forEach(sortable);
all(".chooser").forEach(chooser);
articles.forEach((article) => {
  const found = data[Number(article.dataset.result)], map = one(".heatmap", article), bands = one(".ranges", article);
  if (map) heatmap(map, found.heatmap);
  if (bands) ranges(bands, found.ranges);
});
all("svg.chart").forEach(marked);

const tabs = all(".tabs button");
function showResult(tab) {
  press(tabs, tab, "aria-selected");
  tabs.forEach((other) => { other.tabIndex = other === tab ? 0 : -1; });
  articles.forEach((article) => { article.hidden = article.dataset.result !== tab.dataset.result; });
}
tabs.forEach((tab) => tab.addEventListener("click", () => showResult(tab)));
if (tabs.length) {
  arrows(one(".tabs"), () => tabs, showResult);
  showResult(tabs[0]);
  const root = one(".sheet");
  if (root) sheet(root, articles, (index, thumb) => {
    showResult(tabs[index]);
    thumb.click();
    one(".viewer", articles[index]).scrollIntoView({ block: "center" });
  });
}

one(".theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
// Paper is white: what the script painted is painted anew for it, and back again.
let before = "";
addEventListener("beforeprint", () => { before = document.documentElement.style.colorScheme; setTheme("light"); });
addEventListener("afterprint", () => setTheme(before));
all(".copy").forEach((button) => button.addEventListener("click", () => copy(button)));
