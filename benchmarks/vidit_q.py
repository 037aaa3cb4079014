"""``python -m benchmarks.vidit_q``: ViDiT-Q (arXiv 2406.02540) component by component, beside its baselines.

Every row is quantized, saved, loaded and compared on the same seeds, as ``benchmarks.quality`` does it, whose folders it
shares. ``--part i/n`` measures one part of the rows and writes no result, so that several processes share the work; the
last call, without it, finds all rows measured.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, command_of, environment, write_result
from benchmarks.quality.__main__ import rows, told
from benchmarks.quality.plan import Asked
from benchmarks.quality.row import Pictures, measure
from dither.evaluation.intervals import paired_mean_interval
from dither.quantization import Calibration

MODELS = ("zoo:fashion", "zoo:fashion-hard")
WIDTHS = ("w8a8", "w6a6", "w4a8", "w4a4")
ENDS = ("w8a8", "w4a8")
"""Where variants and other baselines are measured."""
STATIC = "assign.act.static=true"
SEARCH = "smooth.search=[0.2,0.3,0.4,0.5,0.6,0.7,0.8]"
JUDGED = "smooth.rotation=0"
QUICK = ("mixed.samples=8", "mixed.steps=5")
"""Measures sensitivities in a fourth of the time."""


@dataclass(frozen=True)
class Line:
    """One line of the table: a recipe, and what is changed in it.

    Args:
        name: in the table.
        recipe: of ``dither quantize``.
        settings: of ``--set``.
        widths: at which it is measured.
    """

    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    widths: tuple[str, ...] = WIDTHS


LINES = (
    Line("static", "vidit-q", ("smooth=off", "rotate=off", STATIC)),
    Line(
        "static, 10 time groups", "vidit-q", ("smooth=off", "rotate=off", STATIC, "assign.time_groups=10"), widths=ENDS
    ),
    Line("dynamic per token", "vidit-q", ("smooth=off", "rotate=off")),
    Line("+ scaling", "vidit-q", ("rotate=off",)),
    Line("+ rotation", "vidit-q", ("smooth=off",)),
    Line("+ both", "vidit-q"),
    Line("+ both, data-free scales", "vidit-q", ("smooth.data_free=true",)),
    Line("+ both, alpha searched", "vidit-q", (SEARCH, JUDGED), widths=ENDS),
    Line("+ scaling, 2 time ranges", "vidit-q-timed", widths=("w4a8",)),
    Line("uniform, 5-bit weights", "vidit-q", ("assign.weight.bits=5", "assign.adaln.bits=5"), ("w4a8",)),
    Line("MP by time", "vidit-q-mp", widths=("w4a8",)),
    Line("MP by time", "vidit-q-mp", QUICK, ("w6a6", "w4a4")),
    Line("MP on the disk", "vidit-q-mp-stored", widths=("w4a8",)),
    Line("MP on the disk, integer program", "vidit-q-ilp", widths=("w4a8",)),
    Line("rtn", "rtn", widths=ENDS),
    Line("smoothquant", "smoothquant"),
    Line("quarot", "quarot"),
    Line("vidit-q-released", "vidit-q-released", widths=("w8a8",)),
)
PAIRS = (
    ("dynamic per token", "static"),
    ("+ both", "static"),
    ("+ both", "dynamic per token"),
    ("+ both", "+ scaling"),
    ("+ both", "+ rotation"),
    ("+ both", "rtn"),
    ("+ both", "smoothquant"),
    ("+ both", "quarot"),
    ("+ both, data-free scales", "+ both"),
    ("+ both, alpha searched", "+ both"),
    ("MP by time", "+ both"),
    ("MP on the disk", "+ both"),
    ("MP on the disk, integer program", "MP on the disk"),
    ("MP on the disk, integer program", "uniform, 5-bit weights"),
)
"""Lines whose difference is told with its interval: first minus second, picture by picture."""


def main() -> int:
    """Exit status: 1 if a row failed."""
    given = parsed(sys.argv[1:])
    torch.set_num_threads(given.threads)
    pictures = Pictures(n=given.n, steps=given.steps)
    plan = list(asked(given.models, given.bits))
    if given.part is not None:
        index, parts = map(int, given.part.split("/"))
        found = [told(row, measure(row, pictures, given.work)) for _, row in plan[index - 1 :: parts]]
        return 1 if any("failed" in one for one in found) else 0
    found = [told(row, measure(row, pictures, given.work)) for _, row in plan]
    result = {
        **{key: value for key, value in asdict(pictures).items() if key != "batch_size"},
        "calibration": asdict(Calibration()) | {"prompts": []},
        "fd": "Frechet distance in the zoo's own feature network; not FID",
        "rows": rows([row for _, row in plan], found),
        "differences_db": list(differences(plan, found)),
    }
    write_result(given.output, {**environment(command(given), given.threads), **result})
    return 1 if any("failed" in one for one in found) else 0


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Options, with the committed result's as defaults."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vidit_q", description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--bits", nargs="+", default=list(WIDTHS), choices=WIDTHS)
    parser.add_argument("-n", type=int, default=1024, help="pictures a row")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", metavar="I/N", help="measure every Nth row from the Ith, and write nothing")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dither-quality")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "vidit_q.json")
    return parser.parse_args(words)


def command(given: argparse.Namespace) -> str:
    """What repeats this result."""
    return command_of("benchmarks.vidit_q", given, parsed([]), ("models", "bits", "n", "steps"))


def asked(models: Sequence[str], widths: Sequence[str]) -> Iterator[tuple[Line, Asked]]:
    """Every line at each of its widths on every model; models take turns, so that parts have like shares."""
    for bits in widths:
        for line in LINES:
            for model in models:
                if bits in line.widths:
                    yield line, Asked(model, line.recipe, bits, line.settings, line.name)


def differences(plan: Sequence[tuple[Line, Asked]], found: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """PSNR of one line minus another's on the same pictures, with a 95 % interval of the mean."""
    by_name = {
        (row.model, row.bits, line.name): one
        for (line, row), one in zip(plan, found, strict=True)
        if "failed" not in one
    }
    for model, bits in dict.fromkeys((row.model, row.bits) for _, row in plan):
        for first, second in PAIRS:
            pair = [by_name.get((model, bits, name)) for name in (first, second)]
            if pair[0] is None or pair[1] is None:
                continue
            a, b = (np.asarray(one["psnr_db"]["per_image"], dtype=np.float64) for one in pair if one is not None)
            mean, ends = paired_mean_interval(b, a)
            yield {"model": model, "bits": bits, "of": first, "minus": second, "mean": mean, "ci95": list(ends)}


if __name__ == "__main__":
    sys.exit(main())
