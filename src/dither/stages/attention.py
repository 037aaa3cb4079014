"""ALLOCATE: quantize what attention's two products read: q, k, v, and the output of the softmax.

    A = probs( softmax( q(Q) k(K)^T / sqrt(d) ) )        Y = A v(V)

Q-DiT (arXiv 2406.17343) finds ranges of q, k and v anew for each token of each head; TQ-DiT (2502.04056) and PTQ4DiT
(2405.16005) store them, one for each head, and quantize A as well. A channel of v is a channel of Y, its scale leaves the sum
over tokens, and so v may have a range for each channel: where channels stand out, one for a whole head fails. After norms and
rotary embeddings, in any family whose attention is computed by diffusers. ``kernels.attention`` says which products are those
of integers: v must have stored ranges, and A be quantized. Tables and dynamic ranges take effect in ``ranges``; stages before
see exact products.
"""

from dataclasses import dataclass
from typing import ClassVar

from dither.errors import BadRecipe
from dither.models.attentions import attentions_of
from dither.nn import widths_of
from dither.spec import Act, AttentionSpec, Int
from dither.stages.base import Job, Phase
from dither.stages.incoherence import named

__all__ = ["Attention"]


@dataclass(frozen=True)
class Attention:
    """Quantizes the factors of attention's products; what makes them is left to other stages.

    Args:
        bits: width of a code of q, k and v; None leaves them in full precision.
        symmetric: their codes have no zero points.
        probs: width of a code of A, whose codes have a zero point of 0; None leaves it in full precision.
        static: ranges come from calibration: one for each head, and one for A. Otherwise each token of each head, and each
            row of A, has its own.
        channels: each channel of v has a range of its own, from calibration in any case, in the place of each head.
        layers: regular expression; of the attentions, those whose name it finds. Empty: all.
    """

    tag: ClassVar[str] = "attention"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = "2406.17343"
    bits: int | None = 8
    symmetric: bool = False
    probs: int | None = None
    static: bool = False
    channels: bool = False
    layers: str = ""

    def run(self, job: Job) -> None:
        """Promise a spec to every attention that is chosen."""
        if self.bits is None and self.probs is None:
            return
        for field, width in (("bits", self.bits), ("probs", self.probs)):
            if width is not None and not 1 <= width <= 8:
                raise BadRecipe(f"attention.{field} {width}: the width must be 1 to 8")
        every = {a.name: a for a in attentions_of(job.model)}
        if not every:
            raise BadRecipe(
                f"attention: {type(job.model).__name__} (family '{job.adapter.family}') has no attention of diffusers, whose "
                "products could be quantized"
            )
        found = named("attention.layers", self.layers, list(every))
        for name, heads in ((name, a.heads) for name, a in every.items() if name in found):
            widths = widths_of(job.model.get_submodule(name))
            q, k, v = (self._side(width // heads, self.static) for width in (widths.q, widths.k, widths.v))
            v = self._side(1, True) if self.channels else v
            probs = None if self.probs is None else Act(Int(self.probs, symmetric=False), self.static)
            job.attend(name, AttentionSpec(q, k, v, probs))

    def _side(self, group: int, static: bool) -> Act | None:
        return None if self.bits is None else Act(Int(self.bits, self.symmetric, group=group), static)
