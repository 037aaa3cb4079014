"use strict";
// Everything the page shows is in its HTML already; this script adds comparing, sorting, the heatmap and themes.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);
  const press = (buttons, chosen) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === chosen)));

  function comparer(root) {
    const [stage, range, caption] = [".stage", ".slide", ".caption"].map((s) => one(s, root));
    const [over, under, handle] = [".over", ".under", ".handle"].map((s) => one(s, root));
    const [left, right] = [".left", ".right"].map((s) => one(s, root));
    const thumbs = all(".thumb", root), modes = all(".modes button", root);
    let showOver = true;

    function draw() {
      const mode = stage.dataset.mode, share = Number(range.value);
      over.style.clipPath = mode === "slide" ? `inset(0 ${100 - share}% 0 0)` : "none";
      over.style.visibility = mode === "toggle" && !showOver ? "hidden" : "visible";
      handle.style.left = `${share}%`;
      left.hidden = mode === "toggle" && !showOver;
      right.hidden = mode === "toggle" && showOver;
      range.hidden = mode !== "slide";
    }
    function choose(thumb) {
      press(thumbs, thumb);
      const [full, quantized] = all("img", thumb);
      over.src = full.src;
      under.src = quantized.src;
      caption.textContent = thumb.dataset.caption;
    }
    function setMode(button) {
      press(modes, button);
      stage.dataset.mode = button.dataset.mode;
      showOver = true;
      draw();
    }
    // Small pictures are enlarged by whole pixels: smoothing would hide exactly what is to be compared.
    under.addEventListener("load", () => all("img", root).forEach((i) => i.classList.toggle("pixelated", under.naturalWidth < 220)));
    range.addEventListener("input", draw);
    thumbs.forEach((thumb) => thumb.addEventListener("click", () => choose(thumb)));
    modes.forEach((button) => button.addEventListener("click", () => setMode(button)));
    const follow = (event) => {
      if (stage.dataset.mode !== "slide") return;
      const box = stage.getBoundingClientRect();
      range.value = String(100 * (event.clientX - box.left) / box.width);
      draw();
    };
    stage.addEventListener("pointerdown", (event) => {
      if (stage.dataset.mode === "toggle") { showOver = !showOver; draw(); return; }
      stage.setPointerCapture(event.pointerId);
      follow(event);
    });
    stage.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
    choose(thumbs[0]);
    setMode(modes[0]);
  }

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
        body.replaceChildren(...sorted, ...rows.filter((row) => !known(row)));  // what is unknown stays last
      });
    });
  }

  const isDark = () => {
    const chosen = document.documentElement.style.colorScheme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  // From noisy to clean. Clean cells fade into the page in either theme; lightness alone carries the order.
  const RAMPS = {
    light: [[48, 7, 52], [122, 22, 82], [190, 52, 72], [232, 110, 60], [246, 178, 96], [250, 232, 170], [226, 243, 238]],
    dark: [[255, 243, 190], [250, 200, 110], [240, 130, 66], [200, 62, 76], [134, 36, 88], [72, 30, 76], [36, 38, 52]],
  };
  function colour(share) {
    const ramp = isDark() ? RAMPS.dark : RAMPS.light;
    const at = Math.min(Math.max(share, 0), 1) * (ramp.length - 1), i = Math.min(Math.floor(at), ramp.length - 2);
    return `rgb(${ramp[i].map((low, c) => Math.round(low + (ramp[i + 1][c] - low) * (at - i))).join()})`;
  }

  function heatmap(root, data) {
    const canvas = one(".cells", root), tip = one(".tip", root), ramp = one(".ramp", root);
    const rows = data.layers.length, columns = data.timesteps.length, values = data.db.flat();
    // A layer without any noise is written as 100 dB; it must not stretch the scale of the others.
    const noisy = values.filter((value) => value < 99.9), scaled = noisy.length ? noisy : values;
    const low = scaled.reduce((a, b) => Math.min(a, b)), high = scaled.reduce((a, b) => Math.max(a, b));
    const share = (value) => high > low ? (value - low) / (high - low) : 1;
    const height = Math.min(Math.max(560 / rows, 6), 22), foot = 40;
    // What all names begin with says nothing beside a row; the tooltip has the whole name.
    const parts = data.layers.map((name) => name.split("."));
    let shared = 0;
    while (parts.every((p) => p.length > shared + 1 && p[shared] === parts[0][shared])) shared++;
    const names = parts.map((p) => p.slice(rows > 1 ? shared : 0).join("."));
    let gutter = 0, width = 0, chosen = null;
    one(".low", root).textContent = `${low.toFixed(1)} dB, noisy`;
    one(".high", root).textContent = `${high.toFixed(1)} dB, clean`;

    function draw() {
      const scale = window.devicePixelRatio || 1, outer = canvas.clientWidth;
      if (!outer) return;
      const context = canvas.getContext("2d"), style = getComputedStyle(root), rampContext = ramp.getContext("2d");
      for (let x = 0; x < 256; x++) { rampContext.fillStyle = colour(x / 255); rampContext.fillRect(x, 0, 1, 1); }
      canvas.style.height = `${rows * height + foot}px`;
      canvas.width = Math.round(outer * scale);
      canvas.height = Math.round((rows * height + foot) * scale);
      context.scale(scale, scale);
      context.font = `${Math.min(12, Math.max(height, 10))}px ${style.getPropertyValue("--mono")}`;
      context.textBaseline = "middle";
      const longest = Math.max(...names.map((name) => context.measureText(name).width));
      gutter = outer > 640 ? Math.min(longest + 12, outer * 0.36) : 0;
      width = (outer - gutter) / columns;
      const gap = width > 6 && height > 8 ? 1 : 0;
      data.db.forEach((row, i) => row.forEach((value, j) => {
        context.fillStyle = colour(share(value));
        context.fillRect(gutter + j * width, i * height, Math.max(width - gap, 0.5), height - gap);
      }));
      context.fillStyle = getComputedStyle(one(".legend", root)).color;
      const labelled = Math.ceil(10 / height);
      if (gutter) names.forEach((name, i) => {
        if (i % labelled) return;
        let shown = name;
        while (shown.length > 3 && context.measureText(shown).width > gutter - 10) shown = "…" + shown.slice(2);
        context.fillText(shown, 0, (i + 0.5) * height);
      });
      context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
      context.textAlign = "center";
      const every = Math.max(1, Math.ceil(46 / width));
      data.timesteps.forEach((t, j) => {
        if (j % every === 0) context.fillText(String(Math.round(t * 1000) / 1000), gutter + (j + 0.5) * width, rows * height + 11);
      });
      context.fillText("timestep, from noise to picture", gutter + (outer - gutter) / 2, rows * height + 30);
      if (chosen) {
        context.strokeStyle = getComputedStyle(document.body).color;
        context.lineWidth = 2;
        context.strokeRect(gutter + chosen[1] * width, chosen[0] * height, width - gap, height - gap);
      }
    }
    function show(i, j) {
      chosen = [i, j];
      tip.replaceChildren(data.layers[i], document.createElement("br"),
        `timestep ${data.timesteps[j]}: ${data.db[i][j].toFixed(1)} dB`);
      tip.hidden = false;
      draw();
      const x = gutter + (j + 0.5) * width, room = canvas.clientWidth - tip.offsetWidth;
      tip.style.left = `${Math.max(0, Math.min(x + 12, room))}px`;
      tip.style.top = `${i * height + height + 8}px`;
    }
    function hide() { chosen = null; tip.hidden = true; draw(); }
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const j = Math.floor((event.clientX - box.left - gutter) / width), i = Math.floor((event.clientY - box.top) / height);
      if (i >= 0 && i < rows && j >= 0 && j < columns) show(i, j); else hide();
    });
    canvas.addEventListener("pointerleave", hide);
    canvas.addEventListener("blur", hide);
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (event.key === "Escape") hide();
      if (!move) return;
      event.preventDefault();
      const [i, j] = chosen ? [chosen[0] + move[0], chosen[1] + move[1]] : [0, 0];
      show(Math.min(Math.max(i, 0), rows - 1), Math.min(Math.max(j, 0), columns - 1));
    });
    new ResizeObserver(draw).observe(one(".field", root));
    document.addEventListener("themechange", draw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    draw();
  }

  const articles = all("article"), data = JSON.parse(one("#data").textContent);
  all(".comparer").forEach(comparer);
  all("table.sortable").forEach(sortable);
  articles.forEach((article) => {
    const root = one(".heatmap", article);
    if (root) heatmap(root, data[Number(article.dataset.result)]);
  });
  const tabs = all(".tabs button");
  function showResult(tab) {
    press(tabs, tab);
    articles.forEach((article) => { article.hidden = article.dataset.result !== tab.dataset.result; });
  }
  tabs.forEach((tab) => tab.addEventListener("click", () => showResult(tab)));
  if (tabs.length) showResult(tabs[0]);

  one(".theme").addEventListener("click", () => {
    document.documentElement.style.colorScheme = isDark() ? "light" : "dark";
    document.dispatchEvent(new Event("themechange"));
  });
  all(".copy").forEach((button) => button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(one("code", button.parentElement).textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(one("code", button.parentElement));  // no permission: Ctrl-C does it
      button.textContent = "Selected";
    }
  }));

  // Opened with #selftest, the page uses its own controls and writes down what they did: how a headless browser tests it.
  function selfTest() {
    const found = {}, click = (selector, root) => one(selector, root).click();
    const article = articles.find((a) => !a.hidden), over = one(".over", article);
    found.images = all("img", article).every((image) => image.complete && image.naturalWidth > 0);
    found.pixelated = getComputedStyle(over).imageRendering;
    const range = one(".slide", article);
    range.value = "20";
    range.dispatchEvent(new Event("input"));
    found.slide = over.style.clipPath;
    click('[data-mode="toggle"]', article);
    one(".stage", article).dispatchEvent(new PointerEvent("pointerdown"));
    found.toggle = over.style.visibility;
    click('[data-mode="difference"]', article);
    found.difference = getComputedStyle(over).mixBlendMode;
    click('[data-mode="slide"]', article);
    const before = over.src;
    all(".thumb", article).at(-1).click();
    found.thumb = over.src !== before && one(".caption", article).textContent;
    const table = one("table.sortable"), button = all("thead button", table)[3];
    const column = () => all("tbody tr", table).map((row) => row.children[3].dataset.sort ?? null);
    button.click();
    found.ascending = column();
    button.click();
    found.descending = column();
    const cells = one(".cells", article);
    if (cells) {
      const box = cells.getBoundingClientRect();
      cells.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right - 3, clientY: box.top + 3 }));
      found.tip = one(".tip", article).textContent;
      for (const key of ["ArrowDown", "ArrowLeft"]) cells.dispatchEvent(new KeyboardEvent("keydown", { key }));
      found.key = one(".tip", article).textContent;
      cells.dispatchEvent(new Event("blur"));
      found.hidden = one(".tip", article).hidden;
    }
    const page = () => getComputedStyle(document.body).backgroundColor, first = page();
    click(".theme");
    found.theme = page() !== first;
    click(".theme");
    if (tabs.length) { tabs.at(-1).click(); found.tab = articles.map((a) => !a.hidden); tabs[0].click(); }
    found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    document.documentElement.dataset.selftest = JSON.stringify(found);
  }
  if (location.hash === "#selftest") addEventListener("load", selfTest);
})();
