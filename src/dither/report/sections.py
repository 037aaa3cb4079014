"""The sections of one result, each a function from results to HTML; empty where the results lack what it shows."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from dither.report.form import DASH, Cell, byte_size, decimals, escape, interval, table
from dither.report.load import Results, items, lookup, number, numbers, text

__all__ = ["cards", "heatmap", "heatmap_data", "pictures", "plan", "reproduce", "verdict"]

NAMES_SHOWN = 6  # of the layers that stay in full precision for one reason
PICTURE_PREFIXES = ("data:image/png;base64,", "data:image/webp;base64,")


def verdict(results: Results) -> str:
    """One line: what was gained and what it cost."""
    ratio, bits, psnr = (number(results, key) for key in ("size.ratio", "size.bits_per_weight", "psnr_db.mean"))
    bounds = interval(numbers(results, "psnr_db.ci95"), 1)
    quantized, total = number(results, "layers.quantized"), number(results, "layers.total")
    parts = []
    if ratio is not None:
        parts.append(f"<b>{ratio:.2f}× smaller</b>" + (f" at <b>{bits:.2f} bits</b> per weight" if bits else ""))
    if psnr is not None:
        parts.append(f"same-seed pictures at <b>{psnr:.1f} dB</b>" + (f" ({bounds})" if bounds else "") + " PSNR")
    if quantized is not None and total is not None:
        simulated = number(results, "layers.simulated")
        note = f" ({simulated:.0f} simulated)" if simulated else ""
        parts.append(f"<b>{quantized:.0f} of {total:.0f}</b> layers quantized{note}")
    names = [escape(name) for name, _ in items(results, "kernels")]
    if names:
        parts.append("run by " + ", ".join(names))
    return f'<p class="verdict">{"; ".join(parts)}.</p>' if parts else ""


def cards(results: Results) -> str:
    """The headline numbers."""
    size, full = number(results, "size.file_bytes"), number(results, "size.full_precision_bytes")
    ratio, bits = number(results, "size.ratio"), number(results, "size.bits_per_weight")
    model_bits, simulated = number(results, "size.model_bits_per_weight"), number(results, "layers.simulated")
    psnr, ssim = number(results, "psnr_db.mean"), number(results, "ssim.mean")
    bounds = interval(numbers(results, "psnr_db.ci95"), 1)
    quantized, total = number(results, "layers.quantized"), number(results, "layers.total")
    kernels = items(results, "kernels")
    left = "" if quantized is None or total is None else f"{total - quantized:.0f} stay in full precision"
    shown = [
        ("Size", f"{decimals(ratio, 2)}×", f"{byte_size(full)} → {byte_size(size)} on disk", ratio),
        ("Bits per weight", decimals(bits, 2), f"whole model {decimals(model_bits, 2)}, all overhead counted", bits),
        ("PSNR", f"{decimals(psnr, 1)} dB", f"95%: {bounds or DASH} · SSIM {decimals(ssim, 3)}", psnr),
        ("Layers quantized", f"{decimals(quantized, 0)}<i>/{decimals(total, 0)}</i>", left, quantized),
        ("Kernels", _kernel_list(kernels), _simulated(simulated), kernels or None),
    ]
    body = "".join(
        f'<div class="card"><h3>{title}</h3><p class="big">{value}</p><p class="small">{note}</p></div>'
        for title, value, note, there in shown
        if there is not None
    )
    return f'<div class="cards">{body}</div>' if body else ""


def _kernel_list(kernels: list[tuple[str, Any]]) -> str:
    return "".join(
        f'<span class="kernel">{escape(name)} <i>{escape(text({"count": count}, "count") or DASH)}</i></span>'
        for name, count in kernels
    )


def _simulated(count: float | None) -> str:
    if count is None:
        return ""
    return "no layer is simulated" if count == 0 else f"{count:.0f} layers run simulated: no speed is claimed"


def pictures(results: Results) -> str:
    """Pairs to look at: a large one with a slider, and all as thumbnails, which work without the script too."""
    entries = lookup(results, "images")
    entries = [entry for entry in entries if _is_pair(entry)] if isinstance(entries, list) else []
    if not entries:
        return '<p class="note">These results hold no pictures.</p>'
    thumbs = "".join(_thumbnail(entry, index == 0) for index, entry in enumerate(entries))
    modes = "".join(
        f'<button type="button" data-mode="{mode}" aria-pressed="{"true" if mode == "slide" else "false"}">{label}</button>'
        for mode, label in (("slide", "Slider"), ("toggle", "Toggle"), ("difference", "Difference ×8"))
    )
    return f"""<div class="comparer">
<div class="viewer">
<div class="stage"><img class="under" alt="quantized"><img class="over" alt="full precision"><span class="handle"></span>
<span class="side left">full precision</span><span class="side right">quantized</span></div>
<input class="slide" type="range" min="0" max="100" value="50" step="0.5" aria-label="share of the full-precision picture">
<div class="modes" role="group" aria-label="how to compare">{modes}</div>
<p class="caption" aria-live="polite"></p></div>
<div class="thumbs" role="group" aria-label="choose a pair: full precision on the left, quantized on the right">{thumbs}</div>
</div>"""


def _is_pair(entry: object) -> bool:
    sides = [lookup(entry, "full_precision"), lookup(entry, "quantized")]
    return all(isinstance(side, str) and side.startswith(PICTURE_PREFIXES) for side in sides)


def _thumbnail(entry: Mapping[str, Any], chosen: bool) -> str:
    psnr = decimals(number(entry, "psnr_db"), 1) + " dB"
    worst = entry.get("worst") is True
    caption = f"seed {text(entry, 'seed') or DASH} · label {text(entry, 'label') or DASH} · {psnr}"
    caption += " · one of the worst" if worst else ""
    badge = '<span class="badge">worst</span>' if worst else ""
    return (
        f'<button type="button" class="thumb" aria-pressed="{"true" if chosen else "false"}"'
        f' data-caption="{escape(caption)}" title="{escape(caption)}"><span class="pair">'
        f'<img src="{escape(entry["full_precision"])}" alt="full precision">'
        f'<img src="{escape(entry["quantized"])}" alt="quantized"></span>'
        f'<span class="db">{escape(psnr)}{badge}</span></button>'
    )


def heatmap_data(results: Results) -> dict[str, Any] | None:
    """Return `{layers, timesteps, db}` when all three are well formed and agree in shape."""
    layers, timesteps, rows = (lookup(results, f"layer_snr.{key}") for key in ("layers", "timesteps", "db"))
    if not isinstance(layers, list) or not isinstance(rows, list) or not layers or len(rows) != len(layers):
        return None
    columns = numbers({"t": timesteps}, "t")
    values = [numbers({"row": row}, "row") for row in rows]
    if not columns or any(len(row) != len(columns) for row in values):
        return None
    return {"layers": [str(layer) for layer in layers], "timesteps": columns, "db": values}


def heatmap(results: Results) -> str:
    """Frame of the canvas that the script fills from `heatmap_data`."""
    if heatmap_data(results) is None:
        return ""
    return """<div class="heatmap"><div class="legend"><span class="low"></span><canvas class="ramp" width="256" height="1">
</canvas><span class="high"></span></div>
<div class="field"><canvas class="cells" tabindex="0" role="img" aria-label="signal to noise of each layer at each timestep;
arrow keys move between cells"></canvas><div class="tip" role="status" hidden></div></div></div>
<p class="note">Signal-to-noise ratio of each layer's output in dB, given the latents full precision sees at that
timestep. Strong colours are where quantization hurts. Six dB are about one bit.</p>"""


def plan(results: Results) -> str:
    """What was done to each layer, and what was left alone and why."""
    listed = lookup(results, "layers.rows")
    rows = [row for row in listed if isinstance(row, Mapping)] if isinstance(listed, list) else []
    if not rows:
        return '<p class="note">These results do not list the layers.</p>'
    heads = (
        ("Layer", False),
        ("Kind", False),
        ("Shape", True),
        ("Weight", False),
        ("Activation", False),
        ("Kernel", False),
        ("Bits / weight", True),
    )
    listing = table(heads, [_plan_row(row) for row in rows], f"All {len(rows)} layers", sortable=True)
    formats = Counter(_format(row) for row in rows)
    summary = "".join(f"<li><b>{count}</b> × {escape(name)}</li>" for name, count in formats.most_common())
    kept: dict[str, list[str]] = {}
    for row in rows:
        if text(row, "weight") is None:
            kept.setdefault(text(row, "reason") or "no reason was recorded", []).append(text(row, "name") or DASH)
    reasons = "".join(f"<li><b>{escape(reason)}</b>: {_names(names)}</li>" for reason, names in kept.items())
    left = f"<h3>What stays in full precision, and why</h3><ul>{reasons}</ul>" if reasons else ""
    return f'<ul class="formats">{summary}</ul>{left}<div class="tall">{listing}</div>'


def _names(names: list[str]) -> str:
    shown = ", ".join(f"<code>{escape(name)}</code>" for name in names[:NAMES_SHOWN])
    left = len(names) - NAMES_SHOWN
    return shown + (f" and {left} more, listed below" if left > 0 else "")


def _format(row: Mapping[str, Any]) -> str:
    weight, act = text(row, "weight"), text(row, "act")
    return "full precision" if weight is None else f"{weight} weights, {act or 'full-precision'} activations"


def _plan_row(row: Mapping[str, Any]) -> tuple[str, list[Cell]]:
    shape = numbers(row, "shape")
    size = 1.0
    for side in shape:
        size *= side
    bits, weight = number(row, "bits_per_weight"), text(row, "weight")
    kernel = Cell.of_text(text(row, "kernel"))
    if row.get("simulated") is True:
        kernel = Cell(kernel.html + ' <span class="pill">simulated</span>', kernel.sort)
    cells = [
        Cell(f"<code>{escape(text(row, 'name') or DASH)}</code>", text(row, "name")),
        Cell.of_text(text(row, "kind")),
        Cell.of_number(size if shape else None, " × ".join(f"{side:.0f}" for side in shape) or DASH),
        Cell.of_text(weight or "full precision"),
        Cell.of_text(text(row, "act")),
        kernel,
        Cell.of_number(bits, decimals(bits, 2)),
    ]
    return ("kept" if weight is None else "done", cells)


def reproduce(results: Results) -> str:
    """Command, seeds, versions, machine and recipe."""
    facts = [(key, text(results, key)) for key in ("model", "checkpoint", "n", "seed", "steps", "guidance", "device")]
    facts.append(("threads", text(results, "threads")))
    facts += [(name, text({"v": value}, "v")) for name, value in items(results, "versions")]
    facts += [(f"seconds, {name}", text({"v": value}, "v")) for name, value in items(results, "seconds")]
    listing = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts if value)
    command = text(results, "command")
    parts = []
    if command:
        parts.append(
            f'<div class="command"><pre><code>{escape(command)}</code></pre>'
            '<button type="button" class="copy">Copy</button></div>'
        )
    if listing:
        parts.append(f'<dl class="facts">{listing}</dl>')
    recipe = lookup(results, "recipe")
    if isinstance(recipe, Mapping):
        paper = text(recipe, "paper")
        about = f"Recipe {escape(text(recipe, 'name') or '')}" + (f", {escape(paper)}" if paper else "")
        code = escape(json.dumps(recipe, indent=2, ensure_ascii=False))
        parts.append(f"<details><summary>{about}</summary><pre><code>{code}</code></pre></details>")
    return "".join(parts) or '<p class="note">These results do not say how they were made.</p>'
