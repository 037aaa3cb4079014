// Marks of charts say what they are when pointed at, and when the arrow keys move through a focused chart.
function marked(chart) {
  const marks = () => all("[data-tip]", chart);
  let at = -1;
  function show(mark) {
    all(".on", chart).forEach((other) => other.classList.remove("on"));
    mark.classList.add("on");
    showTip(mark.dataset.tip, mark.getBoundingClientRect());
  }
  function leave() {
    all(".on", chart).forEach((mark) => mark.classList.remove("on"));
    at = -1;
    hideTip();
  }
  chart.addEventListener("pointerover", (event) => {
    const mark = event.target.closest("[data-tip]");
    if (mark) show(mark); else leave();
  });
  chart.addEventListener("pointerleave", leave);
  chart.addEventListener("blur", leave);
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key], list = marks();
    if (event.key === "Escape") leave();
    if (!step || !list.length) return;
    event.preventDefault();
    at = at < 0 ? (step > 0 ? 0 : list.length - 1) : Math.min(Math.max(at + step, 0), list.length - 1);
    show(list[at]);
  });
}

// Buttons that choose which of several charts or tables is shown.
function chooser(root) {
  const buttons = all("[data-show]", root), parts = all("[data-shown]", root);
  buttons.forEach((button) => button.addEventListener("click", () => {
    press(buttons, button);
    parts.forEach((part) => { part.hidden = part.dataset.shown !== button.dataset.show; });
  }));
}
