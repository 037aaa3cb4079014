"""A method component by component: lines of a table, each a recipe with settings, at some widths, on some models.

Every row is quantized, saved, loaded and compared on the same seeds, as ``benchmarks.quality`` does it, whose folders it
shares. ``--part i/n`` measures one part of the rows and writes no result, so that several processes share the work; the
last call, without it, finds all rows measured. ``--measured`` writes an unfinished result, which says how many are missing.
"""

import argparse
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
from benchmarks.quality.row import Pictures, is_measured, measure
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
    """

    module: str
    about: str | None
    result: str
    lines: tuple[Line, ...]
    pairs: tuple[tuple[str, str], ...]
    models: tuple[str, ...]
    widths: tuple[str, ...]
    steps: int = 10

    def main(self, words: Sequence[str]) -> int:
        """Exit status: 1 if a row failed."""
        given = self.parsed(words)
        torch.set_num_threads(given.threads)
        pictures = Pictures(n=given.n, steps=given.steps, batch_size=BATCH)
        plan = list(self.asked(given.models, given.bits))
        if given.part is not None:
            index, parts = map(int, given.part.split("/"))
            found = [told(row, measure(row, pictures, given.work)) for _, row in plan[index - 1 :: parts]]
            return 1 if any("failed" in one for one in found) else 0
        asked = len(plan)
        if given.measured:
            plan = [(line, row) for line, row in plan if is_measured(row, pictures, given.work)]
        found = [told(row, measure(row, pictures, given.work)) for _, row in plan]
        result = {
            **{key: value for key, value in asdict(pictures).items() if key != "batch_size"},
            "calibration": asdict(Calibration()) | {"prompts": []},
            "fd": "Frechet distance in the zoo's own feature network; not FID",
            "missing": asked - len(plan),
            "rows": rows([row for _, row in plan], found),
            "differences_db": list(self.differences(plan, found)),
        }
        write_result(given.output, {**environment(self.command(given), given.threads), **result})
        return 1 if any("failed" in one for one in found) else 0

    def parsed(self, words: Sequence[str]) -> argparse.Namespace:
        """Options, with the committed result's as defaults."""
        parser = argparse.ArgumentParser(prog=f"python -m {self.module}", description=self.about)
        parser.add_argument("--models", nargs="+", default=list(self.models), metavar="MODEL")
        parser.add_argument("--bits", nargs="+", default=list(self.widths), choices=self.widths)
        parser.add_argument("-n", type=int, default=1024, help="pictures a row")
        parser.add_argument("--steps", type=int, default=self.steps)
        parser.add_argument("--threads", type=int, default=2)
        parser.add_argument("--part", metavar="I/N", help="measure every Nth row from the Ith, and write nothing")
        parser.add_argument("--measured", action="store_true", help="write the rows that are there, and measure none")
        parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dither-quality")
        parser.add_argument("-o", "--output", type=Path, default=RESULTS / f"{self.result}.json")
        return parser.parse_args(words)

    def command(self, given: argparse.Namespace) -> str:
        """What repeats this result."""
        return command_of(self.module, given, self.parsed([]), ("models", "bits", "n", "steps")) + (
            " --measured" if given.measured else ""
        )

    def asked(self, models: Sequence[str], widths: Sequence[str]) -> Iterator[tuple[Line, Asked]]:
        """Every line at each of its widths on every model; models take turns, so that parts have like shares."""
        for bits in widths:
            for line in self.lines:
                for model in models:
                    if bits in line.widths:
                        yield line, Asked(model, line.recipe, bits, line.settings, line.name)

    def differences(
        self, plan: Sequence[tuple[Line, Asked]], found: Sequence[Mapping[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """PSNR of one line minus another's on the same pictures, with a 95 % interval of the mean."""
        by_name = {
            (row.model, row.bits, line.name): one
            for (line, row), one in zip(plan, found, strict=True)
            if "failed" not in one
        }
        for model, bits in dict.fromkeys((row.model, row.bits) for _, row in plan):
            for first, second in self.pairs:
                pair = [by_name.get((model, bits, name)) for name in (first, second)]
                if pair[0] is None or pair[1] is None:
                    continue
                a, b = (np.asarray(one["psnr_db"]["per_image"], dtype=np.float64) for one in pair if one is not None)
                mean, ends = paired_mean_interval(b, a)
                yield {"model": model, "bits": bits, "of": first, "minus": second, "mean": mean, "ci95": list(ends)}
