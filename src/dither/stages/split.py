"""ALLOCATE: ranges that end where concatenated inputs end (Q-Diffusion's shortcut splitting, arXiv 2302.04304, section 3.2).

A linear that reads a skip connection beside the stream sees two distributions, and a range that covers both spends its codes
on the wider one. So each part of the channels gets quantizers of its own, for activations and for weights:

    W X = W_1 X_1 + W_2 X_2          X = [X_1; X_2] of K_1 + K_2 channels

Quantization in groups of ``gcd(K_1, K_2, ...)`` neighbours does this without a format of its own: no group lies in two parts.
Where the parts are equally wide, a part is one group.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from dither.errors import BadRecipe
from dither.models.base import linear_at
from dither.spec import Float8, Int, LinearSpec
from dither.stages.assign import LEAST_GROUP
from dither.stages.base import Job, Phase
from dither.stages.incoherence import named

__all__ = ["Split"]


@dataclass(frozen=True)
class Split:
    """Lets no range cover two of the tensors that a linear reads side by side; layers that read one stay as they are.

    Args:
        layers: regular expression; only layers whose name it finds are split. It must find one.
        parts: widths of what these layers read, in order, for models whose concatenations nobody knows; empty: those that
            the model's family names.
    """

    tag: ClassVar[str] = "split"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = "2302.04304"
    layers: str = ""
    parts: tuple[int, ...] = ()

    def run(self, job: Job) -> None:
        """Promise groups that respect the parts."""
        if self.parts and (not self.layers or len(self.parts) < 2 or min(self.parts) < 1):
            raise BadRecipe(f"split.parts {self.parts}: two or more positive widths, of layers that split.layers names")
        for name, parts in self._parts(job).items():
            if name in job.varied:
                raise BadRecipe(f"split: layer '{name}' changes its width over time already: split it before")
            if name in job.specs:
                job.promise(name, _split(name, job.specs[name], parts))

    def _parts(self, job: Job) -> Mapping[str, tuple[int, ...]]:
        """Widths of the parts by layer."""
        known = {layer.name: layer.parts for layer in job.layers.values() if layer.parts}
        if not self.layers:
            return known
        asked = named("split.layers", self.layers, list(job.layers)) & set(job.promised)
        found = {name: self.parts or known[name] for name in sorted(asked) if self.parts or name in known}
        if not found:
            why = "reads several tensors, as far as is known (give split.parts)" if asked else "is to be quantized"
            raise BadRecipe(f"split.layers '{self.layers}': none of the layers that it finds {why}")
        for name, parts in found.items():
            if sum(parts) != (width := linear_at(job.model, name).in_features):
                raise BadRecipe(f"split.parts {parts} are {sum(parts)} channels, and layer '{name}' has {width}")
        return found


def _split(name: str, spec: LinearSpec, parts: tuple[int, ...]) -> LinearSpec:
    """The same with groups that divide every part. BadRecipe names the layer where there are none."""
    if spec.rotation is not None and any(part % spec.rotation.block for part in parts):
        raise BadRecipe(
            f"split: layer '{name}' is rotated in blocks of {spec.rotation.block} channels, which mixes its parts {parts}: "
            f"leave it out of the rotation, or rotate blocks of {math.gcd(*parts)}"
        )
    weight, act = spec.weight, spec.act
    if isinstance(weight, Int | Float8):
        weight = replace(weight, group=_group(name, weight.group, parts))
    elif weight is not None:
        raise BadRecipe(f"split: layer '{name}' has {weight} weights, and only integers and float8 have groups")
    if act is not None:
        act = replace(act, grid=replace(act.grid, group=_group(name, act.grid.group, parts)))
    return replace(spec, weight=weight, act=act)


def _group(name: str, had: int, parts: tuple[int, ...]) -> int:
    """The widest group that divides a group size and every part; ``had`` may be per row or per tensor."""
    found = math.gcd(max(had, 0), *parts)
    if found < min(LEAST_GROUP, *parts, had if had > 0 else LEAST_GROUP):
        raise BadRecipe(
            f"split: layer '{name}' reads parts of {parts} channels, and only groups of {found} divide them all: such groups "
            f"cost more than they hold; at least {LEAST_GROUP} are needed"
        )
    return found
