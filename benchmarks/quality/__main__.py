"""``python -m benchmarks.quality``: measure the rows that are missing, and write all of them.

Without options, the committed result: all recipes at all widths on the zoo, and the switches.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, command_of, environment, write_result
from benchmarks.quality.plan import MODELS, RECIPES, SWITCHES, WIDTHS, Asked, product, switched
from benchmarks.quality.row import Pictures, full_precision, measure, numbers
from benchmarks.tables import quality, switches
from dither.measure.export import to_csv
from dither.quantization import Calibration


def main() -> int:
    """Exit status: 1 if a row failed."""
    given = parsed(sys.argv[1:])
    torch.set_num_threads(given.threads)
    names = [s for s in SWITCHES if s.name in given.switches]
    asked = [
        row
        for model in given.models
        for row in (*product([model], given.recipes, given.bits, given.settings), *switched([model], names))
    ]
    pictures = Pictures(given.n, given.seed)
    found = [told(row, measure(row, pictures, given.work)) for row in asked]
    result = {
        **{key: value for key, value in asdict(pictures).items() if key != "batch_size"},
        "calibration": asdict(Calibration()) | {"prompts": []},
        "fd": "Frechet distance in the zoo's own feature network; not FID",
        "rows": rows(asked, found),
    }
    write_result(given.output, {**environment(command(given), given.threads), **result})
    if given.csv is not None:
        given.csv.write_text(as_csv(asked, found), encoding="utf-8")
    if given.markdown is not None:
        given.markdown.write_text(quality(result) + "\n" + switches(result), encoding="utf-8")
    return 1 if any("failed" in one for one in found) else 0


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Options, with the committed result's as defaults."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), metavar="MODEL", help="as dither quantize takes it"
    )
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), metavar="NAME")
    parser.add_argument("--bits", nargs="+", default=list(WIDTHS), metavar="W4A8")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="STAGE.FIELD=VALUE")
    every = [s.name for s in SWITCHES]
    parser.add_argument("--switches", nargs="*", default=every, choices=every, metavar="NAME", help=f"of {every}")
    parser.add_argument("-n", type=int, default=Pictures.n, help="pictures a row")
    parser.add_argument("--seed", type=int, default=Pictures.seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dither-quality")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "quality.json")
    parser.add_argument("--csv", type=Path, help="also every number of every row")
    parser.add_argument("--markdown", type=Path, help="also the tables that documents show")
    return parser.parse_args(words)


def command(given: argparse.Namespace) -> str:
    """What repeats this result: options that are not the default, without the places on this machine."""
    options = ("models", "recipes", "bits", "switches", "n", "seed")
    settings = [word for setting in given.settings for word in ("--set", setting)]
    return " ".join([command_of("benchmarks.quality", given, parsed([]), options), *map(shlex.quote, settings)])


def rows(asked: Sequence[Asked], found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the result: before each model's rows full precision, as the first evaluation that did not fail saw it."""
    made: list[dict[str, Any]] = []
    for model in dict.fromkeys(row.model for row in asked):
        mine = [(row, one) for row, one in zip(asked, found, strict=True) if row.model == model]
        made += [full_precision(model, one) for _, one in mine if "failed" not in one][:1]
        made += [numbers(row, one) for row, one in mine]
    return made


def as_csv(asked: Sequence[Asked], found: Sequence[Mapping[str, Any]]) -> str:
    """As ``dither compare --csv``; a row is called by its settings too, and one that failed has no numbers."""
    head = [
        {"model": row.model, "recipe": {"name": row.recipe}, "bits": row.bits, "checkpoint": " ".join(row.settings)}
        for row in asked
    ]
    return to_csv([{**one, **mine} for mine, one in zip(head, found, strict=True)])


def told(row: Asked, found: dict[str, Any]) -> dict[str, Any]:
    """One line on the terminal."""
    end = found["failed"] if "failed" in found else f"{found['psnr_db']['mean']:.2f} dB"
    sys.stderr.write(f"{row.model} {row.recipe} {row.bits} {row.switch}: {end}\n")
    return found


if __name__ == "__main__":
    sys.exit(main())
