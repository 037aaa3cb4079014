"""Rounding to nearest and by GPTQ, and what ViDiT-Q puts together: SmoothQuant's scales, QuaRot's rotations."""

from dither.recipes.entry import Entry
from dither.spec import Act, Bits, Float8, Int
from dither.stages import Assign, Attention, Clip, Gptq, Ranges, Rotate, Rtn, Smooth, Stage

__all__ = ["ENTRIES"]


def _assign(bits: Bits) -> Assign:
    """Per output channel, symmetric; activations dynamic per token; modulation linears weight-only, never under 4 bits.

    Beside float8, modulation weights are integers of 8 bits: nearer, and decoded by kernels that know them.
    """
    modulation = Int(max(bits.weight, 4))
    if bits.floating:
        return Assign(weight=Float8(), act=Act(Float8()), adaln=modulation)
    act = None if bits.act is None else Act(Int(bits.act))
    return Assign(weight=Int(bits.weight), act=act, adaln=modulation)


def _rtn(bits: Bits) -> tuple[Stage, ...]:
    """``attention.bits=8`` and ``attention.probs=8`` quantize attention's products as well."""
    return (_assign(bits), Attention(bits=None, channels=True), Rtn(), Ranges())


def _rtn_clip(bits: Bits) -> tuple[Stage, ...]:
    return (_assign(bits), Clip(), Rtn(), Ranges())


def _smoothquant(bits: Bits) -> tuple[Stage, ...]:
    return (Smooth(alpha=0.5), _assign(bits), Rtn(), Ranges())


def _quarot(bits: Bits) -> tuple[Stage, ...]:
    """Every rotation is online: nothing can be merged through adaLN, as QuaRot does in language models."""
    return (Rotate(), _assign(bits), Rtn(), Ranges())


def _gptq(bits: Bits) -> tuple[Stage, ...]:
    """Zero points on both sides."""
    act = None if bits.act is None else Act(Int(bits.act, symmetric=False))
    adaln = Int(max(bits.weight, 4), symmetric=False)
    assign = Assign(weight=Int(bits.weight, symmetric=False), act=act, adaln=adaln)
    return (assign, Gptq(act_order=True), Rtn(), Ranges())


ENTRIES = (
    Entry(
        "rtn",
        "",
        "Round to nearest, per channel; activations dynamic per token. The plain baseline.",
        Bits(8, 8),
        _rtn,
        floating=True,
    ),
    Entry(
        "rtn-clip",
        "",
        "rtn inside ranges searched for the least squared error.",
        Bits(4, 8),
        _rtn_clip,
    ),
    Entry(
        "smoothquant",
        "2211.10438",
        "Channel scales folded into adaLN and V rows, then rtn: no cost when it runs.",
        Bits(8, 8),
        _smoothquant,
        floating=True,
    ),
    Entry(
        "quarot",
        "2404.00456",
        "Inputs and weights rotated by randomized Hadamard matrices, then rtn: no scales.",
        Bits(4, 4),
        _quarot,
        floating=True,
    ),
    Entry(
        "gptq",
        "2210.17323",
        "Columns rounded one by one, each error passed on to the others, block behind block; per channel, zero points.",
        Bits(4, 8),
        _gptq,
    ),
)
