"""ALLOCATE: metric-decoupled mixed precision (ViDiT-Q, arXiv 2406.02540, section 4.3).

The noise level is cut into equal ranges (the paper's quarters), and each unit, which is one part of one block, gets a width
for each. What a narrow unit does to pictures is measured unit by unit, weights and inputs apart, by the metric of its role:
text alignment for cross-attention (and modulation), looks for self-attention and feed-forward, consistency for temporal
attention. The bits are divided between roles by their mean squared error to full precision, and spent greedily inside each;
see ``stages.budget``. One command, which goes on where it was interrupted.

    weight: average bits of the weights that run; 4.75 at w4a8 lets a fifth of them have 8 instead of 4

A layer whose width changes over time is stored once, at its widest, and read at fewer bits (``nested``; ``stages.nesting``
rounds it for all of them): what lies on the disk is more than the average of what runs, and ``size`` tells both. ``stored``
gives each weight one width at all times instead, and then the average is what lies on the disk.
"""

from dataclasses import dataclass
from typing import ClassVar

from dither.errors import BadRecipe
from dither.stages.base import Job, Phase, StudySettings
from dither.stages.budget import average_of, expected, greedy
from dither.stages.roles import ROLES
from dither.stages.widths import Asked, Side, check_drawing

__all__ = ["Mixed"]


@dataclass(frozen=True)
class Mixed:
    """Widths by unit and time range, from measured sensitivity.

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
        content: what judges content, such as ``zoo:fashion`` or ``clip``; "" for the usual one of the pipeline.
        visual: what judges looks.
        temporal: what judges consistency of frames.
    """

    tag: ClassVar[str] = "mixed"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = "2406.02540"
    weight: float | None = None
    act: float | None = None
    weight_widths: tuple[int, ...] = (4, 6, 8)
    act_widths: tuple[int, ...] = (4, 6, 8)
    ranges: int = 4
    stored: bool = False
    nested: bool = True
    samples: int = 16
    steps: int = 10
    guidance: float = 1.5
    content: str = ""
    visual: str = ""
    temporal: str = ""

    def run(self, job: Job) -> None:
        """Measure, divide, and promise."""
        check_drawing(self.tag, self.samples, self.steps)
        averages: dict[Side, float | None] = {"weight": self.weight, "act": self.act}
        widths: dict[Side, tuple[int, ...]] = {"weight": self.weight_widths, "act": self.act_widths}
        asked = Asked(self.tag, averages, widths, self.ranges, self.stored, self.nested)
        problems = asked.problems(job)
        if not problems:
            return
        present = {item.role for problem in problems for item in problem.items}
        judges = {"content": self.content, "visual": self.visual, "temporal": self.temporal}
        for role in ROLES:
            if judges[role] and role not in present:
                raise BadRecipe(f"mixed.{role} '{judges[role]}': no layer that is mixed has this role in this model")
        named = {role: judges[role] for role in ROLES if role in present}
        study = job.study(StudySettings(self.samples, self.steps, self.guidance, named))
        solutions = []
        for known in asked.measured(job, study, problems):
            chosen = greedy(known.items, known.average)
            solutions.append((known, chosen))
            found = {"average": average_of(known.items, chosen), "expected": expected(known.items, chosen)}
            job.note(self.tag, {"judges": dict(study.metrics), known.side: found})
        asked.settle(job, solutions)
