"""WEIGHT: round to nearest. Each weight goes to the nearest value of its format's grid.

The grid is min-max unless a range search (``clip``) left a tighter one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from dither import memory
from dither.numerics import encode, encode_int
from dither.spec import Format, Int
from dither.stages.base import Job, Phase

__all__ = ["Rtn"]


@dataclass(frozen=True)
class Rtn:
    """Round to nearest, layer by layer; memory beyond the model is one layer's."""

    tag: ClassVar[str] = "rtn"
    phase: ClassVar[Phase] = Phase.WEIGHT
    paper: ClassVar[str] = ""

    def run(self, job: Job) -> None:
        """Commit every layer that has a spec."""
        for i, (name, spec) in enumerate(job.specs.items()):
            job.commit(name, partial(_encoded, job, name, spec.weight))
            job.progress("rounding weights", i + 1, len(job.specs))


def _encoded(job: Job, name: str, fmt: Format | None) -> Mapping[str, Tensor]:
    w = job.dense(name)
    if fmt is None:
        return {"dense": w}
    if isinstance(fmt, Int) and name in job.grids:
        tensors = encode_int(w.float(), fmt, *job.grids[name])
    else:
        tensors = encode(w.float(), fmt)
    memory.set_aside(w)
    return tensors
