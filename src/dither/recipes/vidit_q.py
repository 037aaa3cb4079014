"""ViDiT-Q (arXiv 2406.02540): the method, its parts, and what its paper and its released code set where they differ.

    y = Q_a(x diag(m) R) Q_w(W diag(m)^-1 R)^T + b        m_c = w_c^alpha / a_c^(1 - alpha),  R = diag(+-1) H / sqrt(K)

Ranges of activations are dynamic, one a token of one sample: conditional and unconditional rows never share a scale. The
original rounds weights before the rotation and again after it; here they are rounded once.
"""

from dither.recipes.entry import Entry
from dither.spec import Act, Bits, Int
from dither.stages import Assign, Mixed, Program, Ranges, Rotate, Rtn, Smooth, Stage, TimedSmooth, Widen

__all__ = ["ENTRIES"]

PAPER = "2406.02540"
ALPHA_OF_VIDEO = 0.5665
"""The authors' for OpenSORA 1.2, in their convention: 1 would equalize the weight, 0 the activation."""
ALPHA_OF_RELEASED = 0.375
"""Of the first released code above 4 bits."""
ALPHA_OF_RELEASED_W4 = 0.99
"""Of the released code for PixArt-Sigma at 4 weight bits."""
ALPHA_OF_SHIPPED_W4 = 0.88
"""Of the first released code at 4 weight bits."""
ALPHA_OF_RANGES = 0.375
ALPHA_OF_RANGES_W4 = 0.89
"""Of the first version's two ranges, the same for both; 0.11 as SmoothQuant counts it."""

FEED_FORWARD = r"\b(ff|mlp)"
"""Names of feed-forward layers: ``ff``, ``ffn`` or ``mlp``."""


def _balance(alpha: float) -> tuple[Stage, ...]:
    """Scales, then rotations; every incoherence is noted with the result."""
    return (Smooth(vidit_alpha=alpha, online=True), Rotate(threshold=0.0))


def _assign(bits: Bits, adaln: bool = True) -> Assign:
    """Zero points everywhere, as in the paper's equation 2.

    Modulation linears are weight-only, never under 4 bits; the original keeps them in full precision.
    """
    act = None if bits.act is None else Act(Int(bits.act, symmetric=False))
    modulation = Int(max(bits.weight, 4), symmetric=False) if adaln else None
    return Assign(weight=Int(bits.weight, symmetric=False), act=act, adaln=modulation)


def _vidit_q(bits: Bits) -> tuple[Stage, ...]:
    """Scales, rotations, one rounding."""
    return (*_balance(ALPHA_OF_VIDEO), _assign(bits), Rtn(), Ranges())


def _average(bits: int | None) -> float | None:
    """The budget of a side: a little above the width asked for, so that some of it can have 8 bits. None at 8 bits."""
    return None if bits is None or bits >= 8 else bits + 0.75


def _widths(bits: int | None) -> tuple[int, ...]:
    """The paper's 4, 6 and 8; from the width asked for where that is less."""
    return (4, 6, 8) if bits is None or bits >= 4 else (bits, 4, 6, 8)


def _ranges(bits: Bits) -> int:
    """Of the noise level, where weights have one width at all times: quarters for activations, if those are mixed."""
    return 1 if _average(bits.act) is None else 4


def _near(bits: int | None) -> tuple[int, ...]:
    """Every width from one below the one asked for to two above it, and 8: any of them packs as well as 4, 6 and 8."""
    around = () if bits is None else range(max(bits - 1, 1), min(bits + 2, 8) + 1)
    return (*(b for b in around if b < 8), 8)


def _budget(bits: Bits) -> tuple[float | None, float | None, tuple[int, ...], tuple[int, ...]]:
    """The first fields of the stages that spend it: averages and widths, of weights and of activations."""
    return _average(bits.weight), _average(bits.act), _widths(bits.weight), _widths(bits.act)


def _allocated(bits: Bits, how: Stage) -> tuple[Stage, ...]:
    """``vidit-q`` with widths of its own for each unit and quarter of the noise level."""
    return (*_balance(ALPHA_OF_VIDEO), _assign(bits), how, Rtn(), Ranges())


def _vidit_q_mp(bits: Bits) -> tuple[Stage, ...]:
    """The budget is the mean over time of the width that runs; weights are stored once, at their widest."""
    return _allocated(bits, Mixed(*_budget(bits)))


def _vidit_q_mp_stored(bits: Bits) -> tuple[Stage, ...]:
    """The budget is what lies on the disk: a weight has one width at all times. Activations still change over time."""
    return _allocated(bits, Mixed(*_budget(bits), ranges=_ranges(bits), stored=True))


def _vidit_q_ilp(bits: Bits) -> tuple[Stage, ...]:
    """The same budget as ``vidit-q-mp-stored``, spent on the exact optimum of one proxy for all roles, in steps of a bit."""
    widths = _near(bits.weight), _near(bits.act)
    averages = _average(bits.weight), _average(bits.act)
    return _allocated(bits, Program(*averages, *widths, ranges=_ranges(bits), stored=True))


def _vidit_q_timed(bits: Bits) -> tuple[Stage, ...]:
    """The paper's first version: two ranges of the noise level, a scale and a bank of weights for each, no rotation."""
    alpha = ALPHA_OF_RANGES_W4 if bits.weight <= 4 else ALPHA_OF_RANGES
    return (_assign(bits), TimedSmooth(edges=(0.5,), vidit_alpha=(alpha,)), Rtn(), Ranges())


def _vidit_q_paper(bits: Bits) -> tuple[Stage, ...]:
    """W8A8 is dynamic ranges per token alone: balancing starts below 8 bits."""
    first = () if bits == Bits(8, 8) else _balance(ALPHA_OF_VIDEO)
    return (*first, _assign(bits, adaln=False), Rtn(), Ranges())


def _vidit_q_released(bits: Bits) -> tuple[Stage, ...]:
    """Activations are symmetric at 8 bits, because the released kernels are.

    It also rounds weights twice, before the rotation and after it, and draws other signs at every load; that is not
    repeated.
    """
    alpha = ALPHA_OF_RELEASED_W4 if bits.weight <= 4 else ALPHA_OF_RELEASED
    first = () if bits == Bits(8, 8) else _balance(alpha)
    act = None if bits.act is None else Act(Int(bits.act, symmetric=bits.act == 8))
    return (*first, Assign(weight=Int(bits.weight, symmetric=False), act=act), Rtn(), Ranges())


def _vidit_q_released_mp(bits: Bits) -> tuple[Stage, ...]:
    """Widths by name and not by time: the first and the last block and every feed-forward layer have 8-bit weights."""
    *before, rtn, ranges = _vidit_q_released(bits)
    return (*before, Widen(layers=FEED_FORWARD, weight=8), Widen(blocks=(0, -1), weight=8), rtn, ranges)


def _vidit_q_shipped_mp(bits: Bits) -> tuple[Stage, ...]:
    """Scales alone, one alpha; 8-bit weights in the noisiest quarter, and in feed-forward layers always."""
    alpha = ALPHA_OF_SHIPPED_W4 if bits.weight <= 4 else ALPHA_OF_RELEASED
    first = (Smooth(vidit_alpha=alpha, online=True), _assign(bits, adaln=False))
    return (*first, Widen(ranges=4, at=(3,), weight=8), Widen(layers=FEED_FORWARD, weight=8), Rtn(), Ranges())


ENTRIES = (
    Entry(
        "vidit-q",
        PAPER,
        "Channels balanced by scales and then by rotations, rounded once, with zero points; modulation linears too.",
        Bits(4, 8),
        _vidit_q,
    ),
    Entry(
        "vidit-q-mp",
        PAPER,
        "vidit-q with widths by part and quarter of the noise level, each part judged by its own metric: about 3/4 bit "
        "more runs on average, and each weight is stored once, at its widest.",
        Bits(4, 8),
        _vidit_q_mp,
    ),
    Entry(
        "vidit-q-mp-stored",
        PAPER,
        "vidit-q-mp with one width at all times for a weight, so that the average is what lies on the disk.",
        Bits(4, 8),
        _vidit_q_mp_stored,
    ),
    Entry(
        "vidit-q-ilp",
        PAPER,
        "vidit-q-mp-stored, but layer by layer, by an exact integer program on the error of short trajectories alone.",
        Bits(4, 8),
        _vidit_q_ilp,
    ),
    Entry(
        "vidit-q-timed",
        PAPER,
        "The first version: no rotation, but scales and a second bank of weights for the noisier half of the steps.",
        Bits(4, 8),
        _vidit_q_timed,
    ),
    Entry(
        "vidit-q-paper",
        PAPER,
        "vidit-q as the paper sets it: w8a8 unbalanced, modulation linears in full precision.",
        Bits(4, 8),
        _vidit_q_paper,
    ),
    Entry(
        "vidit-q-released",
        PAPER,
        "vidit-q-paper as the released code sets it: another alpha, symmetric 8-bit activations.",
        Bits(4, 8),
        _vidit_q_released,
    ),
    Entry(
        "vidit-q-released-mp",
        PAPER,
        "vidit-q-released with 8-bit weights in the first and the last block and in feed-forward layers, at all times.",
        Bits(4, 8),
        _vidit_q_released_mp,
    ),
    Entry(
        "vidit-q-shipped-mp",
        PAPER,
        "The first release's plan: no rotation; 8-bit weights in the noisiest quarter, and in feed-forward layers always.",
        Bits(4, 8),
        _vidit_q_shipped_mp,
    ),
)
