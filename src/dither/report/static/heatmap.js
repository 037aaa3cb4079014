// Error of every layer at every timestep, drawn on a canvas: thousands of cells cost nothing there.
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
  const canvas = one(".cells", root), ramp = one(".ramp", root);
  const rows = data.layers.length, columns = data.timesteps.length, values = data.db.flat();
  // A layer without any noise is written as 100 dB; it must not stretch the scale of the others.
  const noisy = values.filter((value) => value < 99.9), scaled = noisy.length ? noisy : values;
  const low = scaled.reduce((a, b) => Math.min(a, b)), high = scaled.reduce((a, b) => Math.max(a, b));
  const share = (value) => high > low ? (value - low) / (high - low) : 1;
  const height = Math.min(Math.max(560 / rows, 6), 22), foot = 40, names = shortNames(data.layers);
  let gutter = 0, width = 0, chosen = null;
  one(".low", root).textContent = `${low.toFixed(1)} dB, noisy`;
  one(".high", root).textContent = `${high.toFixed(1)} dB, clean`;

  function cells(context) {
    const gap = width > 6 && height > 8 ? 1 : 0;
    data.db.forEach((row, i) => row.forEach((value, j) => {
      context.fillStyle = colour(share(value));
      context.fillRect(gutter + j * width, i * height, Math.max(width - gap, 0.5), height - gap);
    }));
    if (!chosen) return;
    context.strokeStyle = getComputedStyle(document.body).color;
    context.lineWidth = 2;
    context.strokeRect(gutter + chosen[1] * width, chosen[0] * height, width - gap, height - gap);
  }
  function labels(context, outer) {
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
  }
  function paint() {
    const scale = window.devicePixelRatio || 1, outer = canvas.clientWidth;
    if (!outer) return;
    const context = canvas.getContext("2d"), rampContext = ramp.getContext("2d");
    for (let x = 0; x < 256; x++) { rampContext.fillStyle = colour(x / 255); rampContext.fillRect(x, 0, 1, 1); }
    canvas.style.height = `${rows * height + foot}px`;
    canvas.width = Math.round(outer * scale);
    canvas.height = Math.round((rows * height + foot) * scale);
    context.scale(scale, scale);
    context.font = `${Math.min(12, Math.max(height, 10))}px ${getComputedStyle(root).getPropertyValue("--mono")}`;
    context.textBaseline = "middle";
    const longest = Math.max(...names.map((name) => context.measureText(name).width));
    gutter = outer > 640 ? Math.min(longest + 12, outer * 0.36) : 0;
    width = (outer - gutter) / columns;
    cells(context);
    labels(context, outer);
  }
  function show(i, j) {
    chosen = [i, j];
    paint();
    const box = canvas.getBoundingClientRect();
    const cell = new DOMRect(box.left + gutter + j * width, box.top + i * height, width, height);
    showTip(`${data.layers[i]}\ntimestep ${data.timesteps[j]}: ${data.db[i][j].toFixed(1)} dB`, cell);
  }
  function hide() { chosen = null; hideTip(); paint(); }
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const j = Math.floor((event.clientX - box.left - gutter) / width), i = Math.floor((event.clientY - box.top) / height);
    if (i >= 0 && i < rows && j >= 0 && j < columns) show(i, j); else if (chosen) hide();
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
  new ResizeObserver(paint).observe(one(".field", root));
  onTheme(paint);
  paint();
}
