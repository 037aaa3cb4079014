"""TQ-DiT (arXiv 2502.04056): nothing but scales is searched. Two regions, ranges by time, scales by the Hessian.

    x^ = Q(x; tables of the time group),   W^ = Q(W; s),   min over tables and s of  E sum_a (dL/dz_a)^2 (z^_a - z_a)^2

Static ranges throughout, of linears and of attention's products. ``tq-dit-paper`` searches all of them, as published;
``tq-dit`` those of linears alone, and gives each channel of v a range of its own. Where the release does what its paper does
not say (weights with one range a tensor, time groups for the softmax alone), ``tq-dit-released`` does it too; overlapping
regions, vanishing gradients and the rest of what is broken there nobody needs.
"""

from dither.recipes.entry import Entry
from dither.spec import PER_TENSOR, Act, Bits, Int
from dither.stages import (
    Assign,
    Attention,
    FisherAttention,
    FisherScales,
    Ranges,
    Regions,
    Rtn,
    Smooth,
    Stage,
    TimeGroups,
)

__all__ = ["ENTRIES"]

PAPER = "2502.04056"
GROUPS = 10
ALPHAS = tuple(i / 10 for i in range(11))


def _assign(bits: Bits, group: int = 0, symmetric: bool = False) -> Assign:
    """One range for each input, with a zero point; modulation weight-only, never under 4 bits."""
    act = None if bits.act is None else Act(Int(bits.act, symmetric), static=True)
    return Assign(weight=Int(bits.weight, group=group), act=act, adaln=Int(max(bits.weight, 4)))


def _attention(bits: Bits, channels: bool) -> Attention:
    """q and k for each head, symmetric; v for each channel, or each head; probabilities for all."""
    return Attention(bits=bits.act, symmetric=True, probs=bits.act, static=True, channels=channels)


def _regions(bits: Bits) -> tuple[Stage, ...]:
    """Nothing to give regions to where activations stay in full precision."""
    return () if bits.act is None else (Regions(),)


def _front(bits: Bits, channels: bool = False, group: int = 0, symmetric: bool = False) -> tuple[Stage, ...]:
    """What all of them begin with: promises, and the scales of linears."""
    assign = _assign(bits, group, symmetric)
    return (assign, _attention(bits, channels), *_regions(bits), TimeGroups(GROUPS), FisherScales())


def _tq_dit(bits: Bits, channels: bool = True) -> tuple[Stage, ...]:
    """``regions=off``, ``time-groups=off`` and ``fisher-scales=off`` leave static ranges per tensor."""
    return (*_front(bits, channels), Rtn(), Ranges())


def _tq_dit_balanced(bits: Bits) -> tuple[Stage, ...]:
    """Channels that stand out, those of v as well, are divided where they are made before one range must hold for all."""
    act = None if bits.act is None else Act(Int(bits.act, symmetric=False), static=True)
    return (Smooth(search=ALPHAS, weight=Int(bits.weight), act=act), *_tq_dit(bits, channels=False))


def _tq_dit_paper(bits: Bits) -> tuple[Stage, ...]:
    """As published: attention's products are searched too, v has a range for each head, the upper region ends at 1."""
    products: tuple[Stage, ...] = () if bits.act is None else (FisherAttention(top=1.0),)
    return (*_front(bits), *products, Rtn(), Ranges(top=1.0))


def _tq_dit_released(bits: Bits) -> tuple[Stage, ...]:
    """As released, without what is broken there: one range for each weight; the upper region ends at 1; 10 time groups."""
    return (*_front(bits, group=PER_TENSOR, symmetric=True), Rtn(), Ranges(top=1.0))


def _fisher_scales(bits: Bits) -> tuple[Stage, ...]:
    """One brick alone: ``rtn`` with static ranges whose scales are searched."""
    return (_assign(bits), FisherScales(), Rtn(), Ranges())


def _time_groups(bits: Bits) -> tuple[Stage, ...]:
    """One brick alone: ``rtn`` with static ranges by noise level, cut where they change."""
    return (_assign(bits), TimeGroups(GROUPS, learned=True), Rtn(), Ranges())


ENTRIES = (
    Entry(
        "tq-dit",
        PAPER,
        "Static ranges by noise level, two regions behind GELU and softmax, scales by the Hessian; attention quantized too.",
        Bits(8, 8),
        _tq_dit,
    ),
    Entry(
        "tq-dit-balanced",
        PAPER,
        "tq-dit behind channels balanced by scales that fold, their alpha searched: for models whose channels stand out.",
        Bits(8, 8),
        _tq_dit_balanced,
    ),
    Entry(
        "tq-dit-paper",
        PAPER,
        "As published: scales of attention's products by the Hessian as well, v by head, the upper region ends at 1.",
        Bits(8, 8),
        _tq_dit_paper,
    ),
    Entry(
        "tq-dit-released",
        PAPER,
        "The release's granularity: one range for each weight and input, the upper region ends at 1.",
        Bits(8, 8),
        _tq_dit_released,
    ),
    Entry(
        "fisher-scales",
        PAPER,
        "Static ranges per tensor whose scales, and those of weights, are searched by Fisher-weighted output error.",
        Bits(8, 8),
        _fisher_scales,
    ),
    Entry(
        "time-groups",
        PAPER,
        "Static ranges for each of 10 groups of noise levels, cut where ranges change; then rtn.",
        Bits(8, 8),
        _time_groups,
    ),
)
