"""A method component by component: lines of a table, each a recipe with settings, at some widths, on some models.

Every row is quantized, saved, loaded and compared on the same seeds, as ``benchmarks.quality`` does it, whose folders it
shares. ``--part i/n`` measures one part of the rows and writes no result, so that several processes share the work; the
last call, without it, finds all rows measured. ``--measured`` writes an unfinished result, which says how many are missing.
Rows that the result holds already, of the same recipe and pictures, are kept as they are: see ``kept``.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, command_of, environment, write_result
from benchmarks.kept import Kept, of_pictures, pictures_of
from benchmarks.quality.__main__ import told
from benchmarks.quality.plan import Asked
from benchmarks.quality.row import Pictures, digest, full_precision, is_measured, measure, numbers
from dither.evaluation.intervals import paired_mean_interval
from dither.quantization import Calibration

__all__ = ["BATCH", "Components", "Line"]

BATCH = 32
"""Pictures at a time: the fastest on two cores, and no picture depends on it."""


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
    settings: tuple[str, ...]
    widths: tuple[str, ...]


@dataclass(frozen=True)
class Components:
    """What is measured.

    Args:
        module: that runs it.
        about: its help.
        result: name of the committed result.
        lines: of the table.
        pairs: of lines whose difference is told with its interval: first minus second, picture by picture.
        models, widths: of the committed result.
        steps: of the sampler.
        choice: words of the command that choose this study of the module, where it has several.
    """

    module: str
    about: str | None
    result: str
    lines: tuple[Line, ...]
    pairs: tuple[tuple[str, str], ...]
    models: tuple[str, ...]
    widths: tuple[str, ...]
    steps: int = 10
    choice: tuple[str, ...] = ()

    def main(self, words: Sequence[str]) -> int:
        """Exit status: 1 if a row failed."""
        given = self.parsed(words)
        torch.set_num_threads(given.threads)
        pictures = Pictures(n=given.n, steps=given.steps, batch_size=BATCH)
        plan = list(self.asked(given.models, given.bits))
        header = {
            **{key: value for key, value in asdict(pictures).items() if key != "batch_size"},
            "calibration": asdict(Calibration()) | {"prompts": []},
        }
        from_where = environment(self.command(given), given.threads)
        study = _Study(pictures, given.work, Kept.read(given.output, header), from_where)
        if given.part is not None:
            index, parts = map(int, given.part.split("/"))
            missing = [row for _, row in plan[index - 1 :: parts] if not study.has(row)]
            found = [told(row, measure(row, pictures, given.work)) for row in missing]
            return 1 if any("failed" in one for one in found) else 0
        there = [row for _, row in plan if not given.measured or study.has(row)]
        rows = study.rows(there)
        result = {
            **header,
            "fd": "Frechet distance in the zoo's own feature network; not FID",
            "missing": len(plan) - len(there),
            "rows": rows,
            "differences_db": list(differences(self.pairs, rows, study.kept)),
        }
        write_result(given.output, {**from_where, **result})
        return 1 if any("failed" in row for row in rows) else 0

    def parsed(self, words: Sequence[str]) -> argparse.Namespace:
        """Options, with the committed result's as defaults."""
        parser = argparse.ArgumentParser(prog=f"python -m {self.module}", description=self.about)
        parser.add_argument("--models", nargs="+", default=list(self.models), metavar="MODEL")
        parser.add_argument("--bits", nargs="+", default=list(self.widths), choices=self.widths)
        parser.add_argument("-n", type=int, default=1024, help="pictures a row")
        parser.add_argument("--steps", type=int, default=self.steps)
        parser.add_argument("--threads", type=int, default=2)
        parser.add_argument(
            "--part", metavar="I/N", help="measure what is missing of every Nth row from the Ith, and write nothing"
        )
        parser.add_argument("--measured", action="store_true", help="write the rows that are there, and measure none")
        parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dither-quality")
        parser.add_argument("-o", "--output", type=Path, default=RESULTS / f"{self.result}.json")
        return parser.parse_args(words)

    def command(self, given: argparse.Namespace) -> str:
        """What repeats this result."""
        words = command_of(self.module, given, self.parsed([]), ("models", "bits", "n", "steps"))
        return " ".join([words, *self.choice, *(["--measured"] if given.measured else [])])

    def asked(self, models: Sequence[str], widths: Sequence[str]) -> Iterator[tuple[Line, Asked]]:
        """Every line at each of its widths on every model; models take turns, so that parts have like shares."""
        for bits in widths:
            for line in self.lines:
                for model in models:
                    if bits in line.widths:
                        yield line, Asked(model, line.recipe, bits, line.settings, line.name)


@dataclass(frozen=True)
class _Study:
    """Rows of a result, measured here or kept.

    Args:
        pictures: of every row.
        work: folder of what is measured here.
        kept: the result as it was.
        environment: of what is measured here.
    """

    pictures: Pictures
    work: Path
    kept: Kept
    environment: Mapping[str, Any]

    def has(self, asked: Asked) -> bool:
        """Whether nothing needs to be measured for a row."""
        return is_measured(asked, self.pictures, self.work) or self._kept(asked) is not None

    def _kept(self, asked: Asked) -> Mapping[str, Any] | None:
        return self.kept.row(asked, digest(asked, self.pictures))

    def rows(self, plan: Sequence[Asked]) -> list[Mapping[str, Any]]:
        """Before each model's rows full precision, as the first evaluation here saw it, or as it was."""
        made: list[Mapping[str, Any]] = []
        for model in dict.fromkeys(row.model for row in plan):
            full = self.kept.full.get(model)
            mine: list[Mapping[str, Any]] = []
            for asked in (row for row in plan if row.model == model):
                row = None if is_measured(asked, self.pictures, self.work) else self._kept(asked)
                if row is None:
                    found = told(asked, measure(asked, self.pictures, self.work))
                    full = full if full is not None or "failed" in found else full_precision(model, found)
                    row = self.row(asked, found)
                mine.append(row)
            made += [*([] if full is None else [full]), *mine]
        return made

    def row(self, asked: Asked, found: Mapping[str, Any]) -> Mapping[str, Any]:
        """What was measured here."""
        row = numbers(asked, found)
        if "failed" in row:
            return row
        return {
            **row,
            "digest": digest(asked, self.pictures),
            "measured": {name: self.environment[name] for name in ("date", "cpu")},
            "psnr_hundredths_db": of_pictures(found["psnr_db"]["per_image"]),
        }


def differences(
    pairs: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]], kept: Kept
) -> Iterator[Mapping[str, Any]]:
    """PSNR of one line minus another's on the same pictures, with a 95 % interval of the mean. Of rows that do not hold
    their pictures, what the result said.
    """
    by_name = {(row["model"], row["bits"], row["switch"]): row for row in rows if row["bits"] and "failed" not in row}
    for model, bits in dict.fromkeys((model, bits) for model, bits, _ in by_name):
        for first, second in pairs:
            of, minus = (by_name.get((model, bits, name)) for name in (first, second))
            if of is None or minus is None:
                continue
            a, b = pictures_of(of), pictures_of(minus)
            if a is not None and b is not None:
                mean, ends = paired_mean_interval(b, a)
                yield {"model": model, "bits": bits, "of": first, "minus": second, "mean": mean, "ci95": list(ends)}
            elif (known := kept.differences.get((model, bits, first, second))) is not None:
                yield known
