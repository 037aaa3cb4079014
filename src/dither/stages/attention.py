"""ALLOCATE: quantize what attention reads (Q-DiT, arXiv 2406.17343): q, k and v, each token of each head by itself.

    q' = s round(q / s),    s (and a zero point) from the range of the head's d channels at this token; the same for k and v

Ranges are found as the model runs, for heads of any width. Attention's products themselves stay in floating point, so such
layers count as simulated. A layer is chosen only where its family says that attention reads its output as it is: where a norm
or a rotary embedding stands in between, quantizing the output would be another method.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from dither.errors import BadRecipe
from dither.spec import Act, Int, LinearSpec, Timed
from dither.stages.base import Job, Phase
from dither.stages.incoherence import named

__all__ = ["Attention"]


@dataclass(frozen=True)
class Attention:
    """Quantizes the outputs of the linears that make q, k and v; their weights and inputs are left to other stages.

    Args:
        bits: width of a code; None quantizes nothing, for recipes where ``attention.bits=8`` switches it on.
        symmetric: no zero points.
        layers: regular expression; of the layers that attention reads, those whose name it finds. Empty: all.
    """

    tag: ClassVar[str] = "attention"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = "2406.17343"
    bits: int | None = 8
    symmetric: bool = False
    layers: str = ""

    def run(self, job: Job) -> None:
        """Promise an output format to every layer that is chosen."""
        if self.bits is None:
            return
        if not 1 <= self.bits <= 8:
            raise BadRecipe(f"attention.bits {self.bits}: the width must be 1 to 8")
        found = named("attention.layers", self.layers, list(job.layers))
        heads = {layer.name: layer.head for layer in job.layers.values() if layer.name in found and layer.head}
        if not heads:
            raise BadRecipe(
                f"attention.layers '{self.layers}' finds no layer whose head width the model family "
                f"'{job.adapter.family}' tells: q, k and v that attention reads as they are"
            )
        for name, head in heads.items():
            _promise(job, name, Act(Int(self.bits, self.symmetric, group=head)))


def _promise(job: Job, name: str, out: Act) -> None:
    """Add the output's format to all that the layer is to become, also where that changes over time."""
    varied = job.varied.get(name)
    if varied is None:
        job.promise(name, replace(job.specs.get(name, LinearSpec()), out=out))
    elif isinstance(varied, Timed):
        job.vary(name, replace(varied, variants=tuple(replace(v, out=out) for v in varied.variants)))
    else:
        job.vary(name, replace(varied, base=replace(varied.base, out=out)))
