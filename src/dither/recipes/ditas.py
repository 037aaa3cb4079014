"""DiTAS (arXiv 2409.07756): temporal-aggregated smoothing, fine weight groups, and a low-rank branch that needs no training.

    y = Q_a(x / s) W'^T + (x / s) A^T B^T + b        W diag(s) ~ W' + B A,        s = a^alpha / w^(1 - alpha)

a is the largest magnitude of a channel over all steps, alpha is chosen for each site by its output error over all steps, in
one pass for all sites. Groups run along the input channels, so that integers can multiply them; the original's run over
output channels, and no integer kernel can use them. It rounds before it smooths; here what is rounded is what is stored. Its
one range for a whole batch would let pictures depend on their batch: here each token has its own.
"""

from dither.recipes.entry import Entry
from dither.spec import Act, Bits, Int
from dither.stages import Assign, Gptq, Ranges, Rtn, Smooth, SplitLowRank, Stage

__all__ = ["ENTRIES"]

PAPER = "2409.07756"
GROUP = 32
RANK = 32
ALPHAS = tuple(i / 20 for i in range(21))


def _formats(bits: Bits) -> tuple[Int, Act | None]:
    act = None if bits.act is None else Act(Int(bits.act, symmetric=False))
    return Int(bits.weight, symmetric=False, group=GROUP), act


def _smooth(bits: Bits) -> Smooth:
    """Alpha by the error under the very formats that follow."""
    weight, act = _formats(bits)
    return Smooth(search=ALPHAS, online=True, weight=weight, act=act)


def _assign(bits: Bits, adaln: bool) -> Assign:
    weight, act = _formats(bits)
    modulation = Int(max(bits.weight, 4), symmetric=False, group=GROUP) if adaln else None
    return Assign(weight=weight, act=act, adaln=modulation, fit=True)


def _ditas(bits: Bits) -> tuple[Stage, ...]:
    """Rank and width of the branch follow the layer's: 32 of 1152 channels, in 8 bits."""
    return (_smooth(bits), _assign(bits, adaln=True), SplitLowRank(), Rtn(), Ranges())


def _ditas_gptq(bits: Bits) -> tuple[Stage, ...]:
    """What neither paper has: branches that are best for the output, and what they leave rounded by GPTQ."""
    split = SplitLowRank(weighted=True)
    return (_smooth(bits), _assign(bits, adaln=True), split, Gptq(act_order=True), Rtn(), Ranges())


def _ditas_paper(bits: Bits) -> tuple[Stage, ...]:
    """Rank 32 in full precision whatever the width; modulation stays in full precision."""
    return (_smooth(bits), _assign(bits, adaln=False), SplitLowRank(rank=RANK, bits=None), Rtn(), Ranges())


ENTRIES = (
    Entry(
        "ditas",
        PAPER,
        "Smoothing with alpha searched over all steps, weight groups of 32, and a low-rank branch in 8 bits.",
        Bits(4, 8),
        _ditas,
    ),
    Entry(
        "ditas-gptq",
        PAPER,
        "ditas with branches weighted by the Hessian, and GPTQ of what they leave.",
        Bits(4, 8),
        _ditas_gptq,
    ),
    Entry(
        "ditas-paper",
        PAPER,
        "The paper's settings: branches of rank 32 and modulation in full precision.",
        Bits(4, 8),
        _ditas_paper,
    ),
)
