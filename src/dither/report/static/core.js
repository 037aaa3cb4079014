// Everything the page shows is in its HTML or its data already; the script compares, sorts, draws maps and themes.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);
const press = (buttons, chosen, attribute = "aria-pressed") =>
  buttons.forEach((button) => button.setAttribute(attribute, String(button === chosen)));

const isDark = () => {
  const chosen = document.documentElement.style.colorScheme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};
const SVG = "http://www.w3.org/2000/svg";
function draw(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  if (parent) parent.append(element);
  return element;
}

// Names of layers all begin alike; what they share says nothing beside a row, and the tooltip has the whole name.
function shortNames(layers) {
  const parts = layers.map((name) => name.split("."));
  let shared = 0;
  while (parts.every((p) => p.length > shared + 1 && p[shared] === parts[0][shared])) shared++;
  return parts.map((p) => p.slice(layers.length > 1 ? shared : 0).join("."));
}

// One tooltip for the whole page; `box` is what it belongs to, in the window's pixels.
const tip = one("#tip");
function showTip(content, box) {
  tip.textContent = content;
  tip.hidden = false;
  const page = document.documentElement, room = page.clientWidth - tip.offsetWidth - 8;
  const left = box.left + box.width / 2 - tip.offsetWidth / 2;
  const above = box.top - tip.offsetHeight - 9, top = above > 4 ? above : box.bottom + 9;
  tip.style.left = `${Math.max(8, Math.min(left, room)) + scrollX}px`;
  tip.style.top = `${top + scrollY}px`;
}
const hideTip = () => { tip.hidden = true; };

// Arrow keys move among buttons of a group, as in any toolbar.
function arrows(group, buttons, chosen) {
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const list = buttons(), at = list.indexOf(document.activeElement);
    if (!step || at < 0) return;
    event.preventDefault();
    const next = list[(at + step + list.length) % list.length];
    next.focus();
    chosen(next);
  });
}

async function copy(button) {
  const code = one("code", button.parentElement);
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);  // no permission: Ctrl-C does it
    button.textContent = "Selected";
  }
}

function setTheme(scheme) {
  document.documentElement.style.colorScheme = scheme;
  document.dispatchEvent(new Event("themechange"));
}
const onTheme = (redraw) => {
  document.addEventListener("themechange", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
};
