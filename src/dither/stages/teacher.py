"""TRANSFORM: keep a full-precision copy of the model, for stages that learn from it after weights were rounded (``tune``).

Memory: a second model in full precision, until the recipe is done.
"""

from dataclasses import dataclass
from typing import ClassVar

from dither.stages.base import Job, Phase
from dither.stages.parts import full_precision

__all__ = ["Teacher"]


@dataclass(frozen=True)
class Teacher:
    """A copy of the model as it is when the recipe begins."""

    tag: ClassVar[str] = "teacher"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    paper: ClassVar[str] = ""

    def run(self, job: Job) -> None:
        """Keep the copy."""
        job.exact = full_precision(job, job.model)
