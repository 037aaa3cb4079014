"""TRANSFORM: spread outlier channels over all channels by a rotation (QuaRot, arXiv 2404.00456; ViDiT-Q, 2406.02540).

    x W^T = (x R) (W R)^T        R = diag(signs) H / sqrt(block), the same for every block of input channels

H is a Hadamard matrix, see ``numerics.hadamard``. A per-token range follows the largest channel; after R every channel is a
sum of all, and the largest is about ``sqrt(2 ln K)`` times the token's root mean square, whatever it was before. Scales
(``smooth``) take out what is the same at all times, and the rotation what is left, so it comes after them: x is rotated at
run time after its online scale, W here, once, in float64, and is rounded once, later. (ViDiT-Q's released code rounds W
before the rotation and again after it, and loses what the rotation gains.)

Alone it can hurt at few weight bits: the rounding error of W R falls evenly on all channels of x, and is multiplied by its
outliers. Where the weights of an outlier channel are small, as trained balance or ``zoo.hard`` make them, rounding W itself
at worst loses them. Scaling first makes both sides even.

All linears that read a tensor share R. Modulation linears and what the family keeps are left alone: the first see one row
a sample, and a rotation does not fold through adaLN, whose shift and scale act on channels.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dither import memory
from dither.errors import BadFormat, BadRecipe
from dither.numerics import hadamard_order, random_signs, rotate
from dither.spec import Rotation
from dither.stages.base import Job, Phase
from dither.stages.incoherence import Incoherence, measure, named

__all__ = ["Rotate"]


@dataclass(frozen=True)
class Rotate:
    """Randomized Hadamard rotations, seeded by the job, stored with the checkpoint.

    Args:
        block: width of a block, a power of two that divides the input; 0: one block of the whole width, K * 2^k.
        layers: regular expression; only layers whose name it finds are rotated, whatever ``threshold`` says.
        threshold: rotate a site only if its incoherence is at least this, see ``incoherence``; 0 measures and notes it
            and rotates all; None needs no data.
        skip: leave layers alone whose width has no rotation; otherwise they are an error.
    """

    tag: ClassVar[str] = "rotate"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    paper: ClassVar[str] = "2404.00456"
    block: int = 0
    layers: str = ""
    threshold: float | None = None
    skip: bool = False

    def run(self, job: Job) -> None:
        """Rotate the inputs and weights of the chosen layers; the model's function stays the same."""
        sites = self._sites(job)
        if self.threshold is not None:
            sites = self._outstanding(job, sites)
        chosen = [(name, rotation) for readers in sites for name, rotation in readers.items()]
        for i, (name, rotation) in enumerate(chosen):
            _rotate(job, name, rotation)
            job.progress("rotating", i + 1, len(chosen))

    def _sites(self, job: Job) -> list[dict[str, Rotation]]:
        """For each site that could be rotated: the readers to rotate, and how. Refuses before anything is changed."""
        if self.block and (self.block < 2 or self.block & (self.block - 1)):
            raise BadRecipe(f"rotate.block {self.block}: must be 0 (the whole width) or a power of two from 2")
        if self.threshold is not None and not 0 <= self.threshold < math.inf:
            raise BadRecipe(f"rotate.threshold {self.threshold}: must be a number from 0")
        wanted, layers = named("rotate.layers", self.layers, list(job.layers)), job.layers
        found = []
        for site in job.adapter.sites(job.model):
            if any(layers[r].kind == "adaln" or layers[r].keep for r in site.readers):
                continue
            rotations = {r: self._rotation(job, r) for r in site.readers if r in wanted}
            found.append({r: rotation for r, rotation in rotations.items() if rotation is not None})
        chosen = [readers for readers in found if readers]
        if self.layers and not chosen and not self.skip:
            raise BadRecipe(f"rotate.layers '{self.layers}' finds no layer that can be rotated")
        return chosen

    def _rotation(self, job: Job, name: str) -> Rotation | None:
        """Of a layer's width; None if it has none and may be skipped."""
        width = job.dense(name).shape[1]
        try:
            if self.block and width % self.block:
                raise BadFormat(f"rotate.block {self.block} does not divide its {width} input channels")
            hadamard_order(self.block or width)
        except BadFormat as e:
            if self.skip:
                return None
            raise BadFormat(f"layer '{name}': {e}") from None
        return Rotation(self.block or width, job.seed)

    def _outstanding(self, job: Job, sites: list[dict[str, Rotation]]) -> list[dict[str, Rotation]]:
        """The sites whose incoherence reaches the threshold, or all if a regular expression chose; notes every value."""
        before = {next(iter(readers)): Incoherence() for readers in sites}
        rotations = {name: rotation for readers in sites for name, rotation in readers.items()}
        after = {name: Incoherence(rotations[name]) for name in before}
        measure(job, {name: (before[name], after[name]) for name in before})
        chosen = []
        for readers in sites:
            first = next(iter(readers))
            values = before[first].by_time
            if self.layers or max(values) >= (self.threshold or 0):
                chosen.append(readers)
            facts = {"incoherence": values, "incoherence_rotated": after[first].by_time, "rotated": readers in chosen}
            for name in readers:
                job.note(name, facts)
        return chosen


def _rotate(job: Job, name: str, rotation: Rotation) -> None:
    w = job.dense(name)
    signs = random_signs(w.shape[1], rotation.seed).to(w.device)
    turned: Tensor = rotate(w.double(), signs, rotation.block).float()  # (N, K); float32 even where w is bfloat16
    job.online(name, rotation=(rotation, signs), weight=turned)
    memory.set_aside(w)
