// Two pictures on one place: a slider between them, flicker from one to the other, and their difference.
const FLICKER_MS = 600;  // slower than three changes a second, which are safe for everyone

function comparer(root) {
  const [stage, range, caption] = [".stage", ".slide", ".caption"].map((s) => one(s, root));
  const [over, under, handle] = [".over", ".under", ".handle"].map((s) => one(s, root));
  const [left, right] = [".left", ".right"].map((s) => one(s, root));
  const group = one(".thumbs", root), modes = all(".viewer .modes button", root), original = all(".thumb", root);
  const thumbs = () => all(".thumb", group);
  let showOver = true, timer = 0;

  function draw() {
    const mode = stage.dataset.mode, share = Number(range.value), flicker = mode === "flicker";
    over.style.clipPath = mode === "slide" ? `inset(0 ${100 - share}% 0 0)` : "none";
    over.style.visibility = flicker && !showOver ? "hidden" : "visible";
    handle.style.left = `${share}%`;
    left.hidden = flicker && !showOver;
    right.hidden = flicker && showOver;
    range.classList.toggle("idle", mode !== "slide");
  }
  function choose(thumb) {
    press(thumbs(), thumb);
    const [full, quantized] = all("img", thumb);
    over.src = full.src;
    under.src = quantized.src;
    caption.textContent = thumb.dataset.caption;
  }
  const turn = () => { showOver = !showOver; draw(); };
  const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
  function setMode(button) {
    press(modes, button);
    stage.dataset.mode = button.dataset.mode;
    showOver = true;
    clearInterval(timer);
    // Who asked for less motion turns the pictures by hand: a click, or the button again.
    if (button.dataset.mode === "flicker" && !still()) timer = setInterval(() => { if (!root.closest("[hidden]")) turn(); }, FLICKER_MS);
    draw();
  }
  // Small pictures are enlarged by whole pixels: smoothing would hide exactly what is to be compared.
  const crisp = () => all("img", root).forEach((i) => i.classList.toggle("pixelated", under.naturalWidth < 220));
  under.addEventListener("load", crisp);
  if (under.complete) crisp();
  range.addEventListener("input", draw);
  original.forEach((thumb) => thumb.addEventListener("click", () => choose(thumb)));
  arrows(group, thumbs, choose);
  modes.forEach((button) => button.addEventListener("click", () => {
    const again = button.dataset.mode === "flicker" && stage.dataset.mode === "flicker";
    if (again) { clearInterval(timer); turn(); } else setMode(button);
  }));
  const worst = one(".worst-first", root);
  worst.addEventListener("click", () => {
    const on = worst.getAttribute("aria-pressed") !== "true";
    worst.setAttribute("aria-pressed", String(on));
    const psnr = (thumb) => Number(thumb.dataset.psnr ?? Infinity);
    group.replaceChildren(...(on ? [...original].sort((a, b) => psnr(a) - psnr(b)) : original));
    choose(thumbs()[0]);
  });
  const follow = (event) => {
    if (stage.dataset.mode !== "slide") return;
    const box = stage.getBoundingClientRect();
    range.value = String(100 * (event.clientX - box.left) / box.width);
    draw();
  };
  stage.addEventListener("pointerdown", (event) => {
    if (stage.dataset.mode === "flicker") { clearInterval(timer); turn(); return; }
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
  choose(original[0]);
  setMode(modes[0]);
}
