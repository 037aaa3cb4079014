"""Q-DiT (arXiv 2406.17343): groups along the input channels, sized for each layer by a search, GPTQ, dynamic inputs.

    Y_ij = sum_u  Q_a(X_i,u) Q_w(W_j,u)^T        u: groups of g channels, g the same for both sides of a layer

A scale and a zero point for each output channel (each token) and group. The search costs pictures, and may not cost bits:
what it finds takes no more bits and no more bit operations than groups of 128 everywhere.
"""

from dither.recipes.entry import Entry
from dither.spec import Act, Bits, Int
from dither.stages import Assign, Attention, Evolve, Gptq, GroupProgram, Halve, HessianTrace, Ranges, Rtn, Stage

__all__ = ["ENTRIES"]

PAPER = "2406.17343"
GROUP = 128
PAPER_SIZES = (32, 64, 128, 192, 288)


def _assign(bits: Bits) -> Assign:
    """Groups of 128, or the widest that divides; modulation weight-only, never under 4 bits."""
    act = None if bits.act is None else Act(Int(bits.act, symmetric=False, group=GROUP))
    adaln = Int(max(bits.weight, 4), symmetric=False, group=GROUP)
    return Assign(weight=Int(bits.weight, symmetric=False, group=GROUP), act=act, adaln=adaln, fit=True)


def _searched(bits: Bits, search: Stage) -> tuple[Stage, ...]:
    """``gptq=off`` leaves all weights to ``rtn``; ``attention.bits=8`` quantizes q, k and v as well."""
    return (_assign(bits), Attention(bits=None), search, Gptq(act_order=True), Rtn(), Ranges())


def _q_dit(bits: Bits) -> tuple[Stage, ...]:
    """A tenth of a thousandth of what the paper draws: paired errors need few pictures to tell allocations apart."""
    return _searched(bits, Evolve(population=16, keep=4, rounds=8, samples=8, steps=5))


def _q_dit_ilp(bits: Bits) -> tuple[Stage, ...]:
    return _searched(bits, GroupProgram())


def _q_dit_trace(bits: Bits) -> tuple[Stage, ...]:
    return _searched(bits, HessianTrace())


def _q_dit_halving(bits: Bits) -> tuple[Stage, ...]:
    return _searched(bits, Halve())


def _q_dit_paper(bits: Bits) -> tuple[Stage, ...]:
    """What the paper and its release set, without what is broken there: GPTQ as it was, and a search by FID of 800 pictures.

    Its search has no guidance, and judges allocations by rounding to nearest.
    """
    search = Evolve(
        population=50, keep=10, rounds=10, sizes=PAPER_SIZES, samples=800, steps=50, guidance=1.0, judge="inception"
    )
    return (_assign(bits), Attention(bits=None), search, Gptq(bias=False, levels=0), Rtn(), Ranges())


ENTRIES = (
    Entry(
        "q-dit",
        PAPER,
        "Groups, GPTQ, dynamic inputs; group sizes by an evolutionary search on pictures, at the cost of groups of 128.",
        Bits(4, 8),
        _q_dit,
    ),
    Entry(
        "q-dit-ilp",
        PAPER,
        "q-dit whose group sizes are the exact optimum of the errors that each layer alone makes in pictures.",
        Bits(4, 8),
        _q_dit_ilp,
    ),
    Entry(
        "q-dit-trace",
        PAPER,
        "q-dit whose group sizes follow from the trace of the Hessian, as HAWQ-V2 allocates; draws no picture.",
        Bits(4, 8),
        _q_dit_trace,
    ),
    Entry(
        "q-dit-halving",
        PAPER,
        "q-dit whose group sizes are found by successive halving of random ones.",
        Bits(4, 8),
        _q_dit_halving,
    ),
    Entry(
        "q-dit-paper",
        PAPER,
        "The paper's settings: search by FID of 800 pictures, 550 times (days on a CPU), plain GPTQ.",
        Bits(4, 8),
        _q_dit_paper,
    ),
)
