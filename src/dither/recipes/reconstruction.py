"""Methods that learn roundings block by block: AdaRound, PTQ4DiT, Q-Diffusion, TCAQ-DM.

    adaround        2004.10568, 2102.05426   learned rounding; inputs dynamic per token
    ptq4dit         2405.16005               channels balanced by salience over time, folded; roundings and steps at once
    q-diffusion     2302.04304               ranges by L2.4; roundings first, then steps; parts of joined inputs apart
    tcaq-dm         2412.16700               channels balanced over time, weights take all; log2 or uniform softmax; learned
                                             again on what the quantized model draws

All but the first have static ranges of one range a tensor, and quantize attention's products in 8 bits.
"""

from dither.recipes.entry import Entry
from dither.spec import Act, Bits, Int
from dither.stages import AdaRound, Assign, Attention, Clip, Log2OrUniform, Ranges, Rtn, Smooth, Split, Stage

__all__ = ["ENTRIES"]

PRODUCTS = 8


def _assign(bits: Bits, static: bool) -> Assign:
    """Per output channel, zero points on both sides; modulation weight-only, never under 4 bits."""
    act = None if bits.act is None else Act(Int(bits.act, symmetric=False), static=static)
    adaln = Int(max(bits.weight, 4), symmetric=False)
    return Assign(weight=Int(bits.weight, symmetric=False), act=act, adaln=adaln)


def _attention(bits: Bits) -> Attention:
    """In 8 bits, as all of these papers have it; none where activations stay in full precision."""
    width = None if bits.act is None else PRODUCTS
    return Attention(bits=width, probs=width, static=True)


def _adaround(bits: Bits) -> tuple[Stage, ...]:
    return (_assign(bits, static=False), AdaRound(), Rtn(), Ranges())


def _ptq4dit(bits: Bits) -> tuple[Stage, ...]:
    """``smooth.aggregate=max`` is balancing without Spearman's guidance; ``smooth=off`` and ``adaround=off`` leave rtn."""
    balance = Smooth(alpha=0.5, aggregate="spearman")
    return (balance, _assign(bits, static=True), _attention(bits), AdaRound(), Rtn(), Ranges())


def _q_diffusion(bits: Bits) -> tuple[Stage, ...]:
    passes = AdaRound(act_after=250 if bits.act is not None else 0)
    clip = Clip(steps=80, smallest=0.2, outputs=False, power=2.4)
    return (_assign(bits, static=True), Split(), _attention(bits), clip, passes, Rtn(), Ranges())


def _tcaq_dm(bits: Bits) -> tuple[Stage, ...]:
    """The weights bear the whole range of channels; ``log2=off`` leaves every softmax uniform."""
    balance = Smooth(alpha=1.0, aggregate="self-weighted")
    front = (balance, _assign(bits, static=True), _attention(bits), Log2OrUniform())
    return (*front, AdaRound(rounds=2), Rtn(), Ranges())


ENTRIES = (
    Entry(
        "adaround",
        "2004.10568",
        "Roundings learned block by block; per channel, activations dynamic per token.",
        Bits(4, 8),
        _adaround,
    ),
    Entry(
        "ptq4dit",
        "2405.16005",
        "Salience-balanced channels folded into adaLN and V, then roundings and static ranges learned block by block.",
        Bits(4, 8),
        _ptq4dit,
    ),
    Entry(
        "q-diffusion",
        "2302.04304",
        "Ranges by L2.4, roundings learned block by block, static ranges learned in a second pass.",
        Bits(4, 8),
        _q_diffusion,
    ),
    Entry(
        "tcaq-dm",
        "2412.16700",
        "Channels balanced over time, a log2 or uniform softmax by likelihood, roundings learned again on its own pictures.",
        Bits(4, 8),
        _tcaq_dm,
    ),
)
