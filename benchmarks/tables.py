"""Tables in the documents, made of ``results/*.json``: what stands between ``<!-- table:NAME -->`` and ``<!-- end -->``.

python -m benchmarks.tables            write them
python -m benchmarks.tables --check    exit with 1 where a document and the results disagree
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import evaluation_tables, low_bit_tables, q_dit_tables, tq_dit_tables, vidit_q_tables
from benchmarks.cpu import tables as cpu_tables
from benchmarks.markdown import Result, above_all_others, distance_of, floors, psnr_of, result, table

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/*.md", "benchmarks/*.md")
MARKED = re.compile(r"(<!-- table:([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    stale = [path for path in documents() if update(path, check)]
    for path in stale:
        sys.stdout.write(f"{path.relative_to(ROOT)} {'is not what the results say' if check else 'updated'}\n")
    sys.exit(1 if check and stale else 0)


def documents() -> list[Path]:
    """Every document that may hold a table."""
    return [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]


def update(path: Path, check: bool = False) -> bool:
    """Whether the document's tables differ from the results; they are written unless ``check``."""
    old = path.read_text(encoding="utf-8")
    new = filled(old)
    if new != old and not check:
        path.write_text(new, encoding="utf-8")
    return new != old


def filled(text: str) -> str:
    """The text with its tables made anew. Raises KeyError at a name that is no table."""
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", text)


def quality(data: Result) -> str:
    """Recipes x widths on every model: PSNR with its interval, and the Frechet distance to full precision."""
    rows = [r for r in data["rows"] if r["bits"] and not r["switch"]]
    recipes = list(dict.fromkeys(r["recipe"] for r in rows))
    lines = []
    for model, bits in dict.fromkeys((r["model"], r["bits"]) for r in rows):
        mine = {r["recipe"]: r for r in rows if (r["model"], r["bits"]) == (model, bits)}
        lines.append(
            [f"`{model}`", bits.upper(), *bytes_of(mine.values()), *differences([mine.get(r) for r in recipes])]
        )
    header = ["model", "bits", "true bits per weight", "smaller", *(f"`{recipe}`" for recipe in recipes)]
    return table(header, lines) + "\n" + explained(data)


def bytes_of(rows: Iterable[Result]) -> list[str]:
    """True bits per weight and how much smaller, from the first row that was measured; formats alone decide them here."""
    size = next((row["size"] for row in rows if "failed" not in row), None)
    return ["", ""] if size is None else [f"{size['bits_per_weight']:.2f}", f"{size['ratio']:.2f}x"]


def differences(rows: Sequence[Result | None]) -> list[str]:
    """A cell each, the PSNR in bold that can be told from all others."""
    measured = [(i, row["psnr_db"]["ci95"]) for i, row in enumerate(rows) if row is not None and "failed" not in row]
    best = above_all_others([ends for _, ends in measured])
    return [difference(row, best is not None and i == measured[best][0]) for i, row in enumerate(rows)]


def explained(data: Result) -> str:
    """What the cells of a quality table are, and what full precision itself shows."""
    how = f"{data['n']} pictures of the same seeds, {data['steps']} steps, guidance {data['guidance']}"
    return (
        f"Cells: PSNR to full precision in dB (60 at most), [95% interval], FD to full precision ± standard error; {how}. "
        "Bold: an interval above all others of the line. "
        f"Full precision against itself: {floors(data['rows'])}.\n"
    )


def difference(row: Result | None, best: bool) -> str:
    """PSNR, interval and distance of a row; what became of it if it failed; nothing if nobody asked for it."""
    if row is None:
        return ""
    if "failed" in row:
        return f"failed: {row['failed']}"
    psnr = psnr_of(row)
    return f"{f'**{psnr}**' if best else psnr}, {distance_of(row)}"


def switches(data: Result) -> str:
    """One change to a recipe at a time, beside the recipe as it is."""
    rows = [r for r in data["rows"] if r["bits"]]
    plain = {(r["model"], r["recipe"], r["bits"]): r for r in rows if not r["switch"]}
    lines = []
    for row in (r for r in rows if r["switch"]):
        before = plain.get((row["model"], row["recipe"], row["bits"]))
        layers = row.get("layers")
        lines.append(
            [
                f"`{row['model']}`",
                f"`{row['recipe']}` {row['bits'].upper()}",
                f"{row['switch']}: {' '.join(f'`{setting}`' for setting in row['settings'])}",
                *differences([before, row]),
                bytes_of([row])[0],
                "" if layers is None else f"{layers['simulated']} of {layers['quantized']}",
            ]
        )
    header = ["model", "recipe", "switch", "without", "with", "true bits per weight", "layers simulated"]
    return table(header, lines) + "\n" + explained(data)


def xl(name: str) -> str:
    """Minutes, memory and bytes at full size."""
    data = result(name)
    lines = []
    for row in data["rows"]:
        made, loaded = row["quantize"], row["load"]
        lines.append(
            [
                row["layout"],
                f"`{row['recipe']}` {row['bits'].upper()}{''.join(f', {word}' for word in made.get('settings', []))}",
                f"{made['minutes']:.1f}",
                against(made),
                f"{megabytes(made['file_bytes'])}, {made['file_ratio']:.2f}x smaller",
                f"{made['bits_per_weight']:.2f}",
                f"{loaded['seconds']:.1f}",
                against(loaded),
            ]
        )
    goals = data["goals"]
    header = ["layout", "recipe", "minutes", f"peak memory (goal {goals['quantize_peak_ratio']})", "packed file"]
    header += ["true bits per weight", "seconds to load", f"peak memory loading (goal {goals['load_peak_ratio']})"]
    sizes = ", ".join(f"{layout} {o['parameters'] / 1e6:.0f} M" for layout, o in data["originals"].items())
    return table(header, lines) + (
        f"\nPeaks are times the {data['reference']}. {data['memory']}. Parameters in the file: {sizes}. "
        f"{data['cpu']}, {data['threads']} threads.\n"
    )


def megabytes(count: int) -> str:
    """In both units, as papers count in either."""
    return f"{count / 1e6:,.0f} MB ({count / (1 << 20):,.1f} MiB)"


def against(part: Mapping[str, Any]) -> str:
    """A peak, and whether it is below its goal."""
    return f"{part['peak_ratio']:.2f}x{'' if part['goal_met'] else ' (missed)'}"


TABLES: Mapping[str, Callable[[], str]] = {
    "quality": lambda: quality(result("quality")),
    "switches": lambda: switches(result("quality")),
    "xl": lambda: xl("xl"),
    "xl-vidit-q": lambda: xl("xl_vidit_q"),
    "xl-gptq": lambda: xl("xl_gptq"),
    "xl-low-bit": lambda: xl("xl_low_bit"),
    **evaluation_tables.TABLES,
    **vidit_q_tables.TABLES,
    **q_dit_tables.TABLES,
    **tq_dit_tables.TABLES,
    **low_bit_tables.TABLES,
    **cpu_tables.TABLES,
}


if __name__ == "__main__":
    main()
