"""ALLOCATE: the exact allocation of widths on a cheap proxy, to compare the greedy one with.

The proxy is the mean squared error of the pictures of a short trajectory when one layer alone is narrow (in one range of the
noise level), summed as if effects added up. With it the best widths under a budget are an integer program of one binary for
each layer, range and width, which HiGHS (through SciPy) solves to the proven optimum; MixDQ (arXiv 2405.17873), of ViDiT-Q's
authors, allocates so for U-Nets. Nothing here knows what a layer is for.
"""

from dataclasses import dataclass
from typing import ClassVar

from dither.errors import BadRecipe
from dither.stages.base import Job, Phase, StudySettings
from dither.stages.budget import average_of, expected, optimum
from dither.stages.widths import Asked, Side, check_drawing

__all__ = ["Program"]


@dataclass(frozen=True)
class Program:
    """Widths of least expected squared error under a budget.

    Args:
        weight: average bits of the weights, codes alone; None leaves them as they are.
        act: average bits of the inputs, weighted by the layers' weight counts; None leaves them as they are.
        weight_widths: to choose from, ascending. Modulation layers keep at least what they have.
        act_widths: the same for inputs.
        ranges: equal parts of the noise level.
        stored: one width for a weight at all times. Inputs change all the same: they are never stored.
        nested: narrow codes are the high bits of wide ones; otherwise each width is a bank of its own.
        samples: pictures a drawing.
        steps: of the sampler.
        guidance: of the sampler.
        by_layer: every layer has widths of its own; otherwise the layers of one part of a block share them.
        seconds: that the solver may take for each side; if they do not suffice, what it has is taken and its gap noted.
    """

    tag: ClassVar[str] = "integer-program"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = ""
    weight: float | None = None
    act: float | None = None
    weight_widths: tuple[int, ...] = (4, 6, 8)
    act_widths: tuple[int, ...] = (4, 6, 8)
    ranges: int = 4
    stored: bool = False
    nested: bool = True
    samples: int = 8
    steps: int = 5
    guidance: float = 1.5
    by_layer: bool = True
    seconds: float = 60.0

    def run(self, job: Job) -> None:
        """Measure, solve, and promise."""
        check_drawing(self.tag, self.samples, self.steps)
        if not self.seconds > 0:
            raise BadRecipe(f"{self.tag}.seconds {self.seconds:g}: must be positive")
        averages: dict[Side, float | None] = {"weight": self.weight, "act": self.act}
        widths: dict[Side, tuple[int, ...]] = {"weight": self.weight_widths, "act": self.act_widths}
        asked = Asked(self.tag, averages, widths, self.ranges, self.stored, self.nested, self.by_layer)
        problems = asked.problems(job)
        if not problems:
            return
        study = job.study(StudySettings(self.samples, self.steps, self.guidance))
        solutions = []
        for known in asked.measured(job, study, problems):
            best = optimum(known.items, known.average, self.seconds)
            chosen = [[w] * len(item.sizes) for item, w in zip(known.items, best.widths, strict=True)]
            solutions.append((known, chosen))
            error = expected(known.items, chosen)["mse"]
            found = {"average": average_of(known.items, chosen), "expected": {"mse": error}, "gap": best.gap}
            job.note(self.tag, {known.side: found})
        asked.settle(job, solutions)
