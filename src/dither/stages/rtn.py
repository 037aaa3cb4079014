"""WEIGHT: round to nearest. Each weight goes to the nearest value of its format's grid.

The grid is min-max unless a range search (``clip``) left a tighter one. What another stage has finished stays as it is. A
layer that is to have several banks of weights over time (``job.vary``) gets each of them from the same dense weight; one
whose codes are read at several widths is rounded for all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from dither import memory
from dither.numerics import encode, encode_int
from dither.spec import Format, Int, Timed, Views
from dither.stages.base import Job, Phase
from dither.stages.nesting import encode_for

__all__ = ["Rtn"]


@dataclass(frozen=True)
class Rtn:
    """Round to nearest, layer by layer; memory beyond the model is one layer's."""

    tag: ClassVar[str] = "rtn"
    phase: ClassVar[Phase] = Phase.WEIGHT
    paper: ClassVar[str] = ""

    def run(self, job: Job) -> None:
        """Commit every layer that has a spec and is not finished, and every one that is to have banks."""
        banks = {name: spec for name, spec in job.varied.items() if isinstance(spec, Timed)}
        plain = {name: spec for name, spec in job.specs.items() if name not in job.done}
        total = len(plain) + len(banks)
        for i, (name, spec) in enumerate(plain.items()):
            job.commit(name, partial(_encoded, job, name, spec.weight))
            job.progress("rounding weights", i + 1, total)
        for i, (name, timed) in enumerate(banks.items(), len(plain)):
            job.commit_timed(name, timed, partial(_banks, job, name, timed))
            job.progress("rounding weights", i + 1, total)


def _encoded(job: Job, name: str, fmt: Format | None) -> Mapping[str, Tensor]:
    w = job.dense(name)
    if fmt is None:
        return {"dense": w}
    if isinstance(fmt, Int) and isinstance(views := job.varied.get(name), Views):
        tensors = encode_for(w.float(), fmt, [v.bits for v in views.views], *job.grids.get(name, ()))
    elif isinstance(fmt, Int) and name in job.grids:
        tensors = encode_int(w.float(), fmt, *job.grids[name])
    else:
        tensors = encode(w.float(), fmt)
    memory.set_aside(w)
    return tensors


def _banks(job: Job, name: str, spec: Timed) -> Mapping[str, Tensor]:
    """Tensors of every variant, ``I.NAME``."""
    made = [_encoded(job, name, variant.weight) for variant in spec.variants]
    return {f"{i}.{key}": tensor for i, tensors in enumerate(made) for key, tensor in tensors.items()}
