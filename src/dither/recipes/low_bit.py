"""Weights of 1 to 4 bits: trellis codes behind rotations, with errors passed on, scales and biases tuned.

    W R = trellis codes of Gaussian values, a scale for each row      R: see ``rotate``; codes: QTIP, arXiv 2406.11235

After a rotation every weight looks Gaussian, and one codebook that nobody stores serves all of them. Its values are int8, so
that activations of 8 bits multiply them as integers.
"""

from dither.recipes.entry import Entry
from dither.spec import Act, Bits, Format, Int, Trellis
from dither.stages import Assign, CodeProgram, Gptq, Ranges, Rotate, Rtn, Stage, Teacher, Tune

__all__ = ["ENTRIES"]

PAPER = "2406.11235"
LEAST, MOST = 2, 4
OUTPUTS = 16
"""Rounded at a time: a row of tiles."""


def _dither(bits: Bits, between: tuple[Stage, ...] = ()) -> tuple[Stage, ...]:
    """``rotate=off``, ``gptq=off``, ``tune=off`` and ``share=off`` leave a component out each.

    Modulation is coded too; its inputs stay.

    Codes of trellises are not tuned: to change one changes the values of all windows that it is in.

    Above 4 bits integers do as well.
    """
    act = None if bits.act is None else Act(Int(bits.act))
    code: Format = Trellis(bits.weight) if bits.weight <= MOST else Int(bits.weight)
    front = (Teacher(), Rotate(skip=True), Assign(weight=code, act=act, adaln=code, fit=True))
    return (*front, *between, Gptq(outputs=OUTPUTS), Rtn(), Tune(lr=0.0), Ranges())


def _dither_mixed(bits: Bits) -> tuple[Stage, ...]:
    """One bit more or less for each layer, at the same average. One bit in all is too little for the forecast."""
    widths = tuple(range(max(bits.weight - 1, LEAST), min(bits.weight + 1, MOST) + 1))
    return _dither(bits, (CodeProgram(widths),) if bits.weight in widths else ())


ENTRIES = (
    Entry(
        "dither",
        PAPER,
        "Trellis codes of 1 to 4 bits behind rotations, errors passed on, scales and biases tuned; int8 inputs if asked for.",
        Bits(2, None),
        _dither,
    ),
    Entry(
        "dither-mixed",
        PAPER,
        "The same with bits for each layer by what its errors do, at the same average (an integer program).",
        Bits(3, None),
        _dither_mixed,
    ),
)
