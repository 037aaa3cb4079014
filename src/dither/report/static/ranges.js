// What goes into each layer over time: the band from lowest to highest, and the root mean square as a line.
function ranges(root, data) {
  const large = one(".large", root), sparks = one(".sparks", root), caption = one(".caption", root);
  const names = shortNames(data.layers), count = data.timesteps.length;
  const span = (i, j) => data.high[i][j] - data.low[i][j];
  // How far the widest step is from the narrowest: one static scale must serve both.
  const moves = data.layers.map((_, i) => {
    const spans = data.timesteps.map((_, j) => Math.max(span(i, j), 1e-12));
    return Math.max(...spans) / Math.min(...spans);
  });
  const order = data.layers.map((_, i) => i).sort((a, b) => moves[b] - moves[a]);
  let chosen = order[0];

  function band(parent, i, x, y) {
    const at = (row, j) => `${x(j).toFixed(1)},${y(row[j]).toFixed(1)}`, steps = data.timesteps.map((_, j) => j);
    const edge = [...steps.map((j) => at(data.high[i], j)), ...steps.reverse().map((j) => at(data.low[i], j))];
    draw("polygon", { class: "band s0", points: edge.join(" ") }, parent);
    draw("polyline", { class: "line s0", points: steps.reverse().map((j) => at(data.rms[i], j)).join(" ") }, parent);
  }
  const extent = (i) => [Math.min(0, ...data.low[i]), Math.max(0, ...data.high[i], ...data.rms[i], 1e-9)];

  function ticks(low, high, wanted) {
    const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
    const first = Math.ceil(low / step), last = Math.floor(high / step);
    return Array.from({ length: last - first + 1 }, (_, k) => Number(((first + k) * step).toPrecision(12)));
  }
  function paint() {
    const width = Math.max(large.parentElement.clientWidth - 32, 260), height = 250, left = 52, bottom = 204, i = chosen;
    const [low, high] = extent(i);
    const x = (j) => left + (width - left - 14) * j / (count - 1), y = (v) => bottom - (bottom - 12) * (v - low) / (high - low);
    large.setAttribute("viewBox", `0 0 ${width} ${height}`);
    large.replaceChildren();
    ticks(low, high, 5).forEach((value) => {
      draw("line", { class: value === 0 ? "axis" : "grid", x1: left, x2: width - 14, y1: y(value), y2: y(value) }, large);
      draw("text", { class: "tick", x: left - 8, y: y(value) + 5, "text-anchor": "end" }, large).textContent = String(value);
    });
    const every = Math.max(1, Math.ceil(count * 56 / (width - left)));
    data.timesteps.forEach((t, j) => {
      if (j % every === 0) draw("text", { class: "tick", x: x(j), y: bottom + 21, "text-anchor": "middle" }, large).textContent = String(Math.round(t * 1000) / 1000);
    });
    draw("text", { class: "tick", x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, large).textContent = "timestep, from noise to picture";
    band(large, i, x, y);
    data.timesteps.forEach((t, j) => {
      const said = [data.low, data.high, data.rms].map((rows) => Number(rows[i][j].toPrecision(3)));
      const mark = draw("circle", { class: "knot s0", cx: x(j), cy: y(data.rms[i][j]), r: 3 }, large);
      mark.dataset.tip = `${data.layers[i]}\ntimestep ${t}\n${said[0]} to ${said[1]}, rms ${said[2]}`;
    });
    caption.textContent = `${data.layers[i]}: the range grows and shrinks ${moves[i].toFixed(moves[i] < 10 ? 1 : 0)}-fold over time`;
  }
  const buttons = order.map((i) => {
    const button = document.createElement("button"), name = document.createElement("span");
    button.type = "button";
    button.title = data.layers[i];
    button.dataset.layer = i;
    name.textContent = `\u200e${names[i]}`;
    const [low, high] = extent(i), svg = draw("svg", { viewBox: "0 0 120 34", preserveAspectRatio: "none", "aria-hidden": "true" }, button);
    band(svg, i, (j) => 120 * j / (count - 1), (v) => 33 - 32 * (v - low) / (high - low));
    button.append(name);
    button.addEventListener("click", () => pick(button));
    return button;
  });
  function pick(button) {
    press(buttons, button);
    chosen = Number(button.dataset.layer);
    paint();
  }
  sparks.replaceChildren(...buttons);
  arrows(sparks, () => buttons, pick);
  new ResizeObserver(paint).observe(root);
  pick(buttons[0]);
}
