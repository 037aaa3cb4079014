// The same pictures in every result, those that suffer most first: one column a picture, one row a result.
const SHEET_COLUMNS = 10;

function sheet(root, articles, open) {
  const thumbs = articles.map((article) => new Map(all(".thumb", article).map((thumb) => [thumb.dataset.key, thumb])));
  const names = all(".tabs button");
  const psnr = (thumb) => Number(thumb.dataset.psnr ?? Infinity);
  const shown = thumbs.map((map, i) => i).filter((i) => thumbs[i].size);
  const shared = [...thumbs[shown[0]].keys()].filter((key) => shown.every((i) => thumbs[i].has(key)));
  const suffers = (key) => Math.min(...shown.map((i) => psnr(thumbs[i].get(key))));
  const keys = shared.sort((a, b) => suffers(a) - suffers(b)).slice(0, SHEET_COLUMNS);
  if (!keys.length) { root.closest("section").hidden = true; return; }
  root.style.gridTemplateColumns = `minmax(92px, 150px) repeat(${keys.length}, minmax(56px, 92px))`;

  function row(who, pictures) {
    const name = document.createElement("span");
    name.className = "who";
    name.append(...who);
    root.append(name, ...pictures);
  }
  function picture(source, label, psnrText, action) {
    const button = document.createElement("button"), image = document.createElement("img");
    button.type = "button";
    button.setAttribute("aria-label", label);
    image.src = source;
    image.alt = "";
    image.addEventListener("load", () => image.classList.toggle("pixelated", image.naturalWidth < 220));
    const said = document.createElement("span");
    said.className = "psnr";
    said.textContent = psnrText;
    button.append(image, said);
    button.addEventListener("click", action);
    return button;
  }
  const sides = (i, key) => all("img", thumbs[i].get(key));
  row(["full precision"], keys.map((key) => picture(sides(shown[0], key)[0].src, `full precision, seed and label ${key}`, "original",
    () => open(shown[0], thumbs[shown[0]].get(key)))));
  shown.forEach((i) => row([...names[i].cloneNode(true).childNodes], keys.map((key) => {
    const thumb = thumbs[i].get(key);
    return picture(sides(i, key)[1].src, `${names[i].textContent}: ${thumb.dataset.caption}`, one(".db", thumb).firstChild.textContent,
      () => open(i, thumb));
  })));
}
