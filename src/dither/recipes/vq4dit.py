"""VQ4DiT (arXiv 2408.17131): weights of 2 or 3 bits as codewords, modulation included, assignments calibrated without data.

2 bits: 256 words of 4 weights        3 bits: 64 words of 2        for each layer; activations stay in full precision

Embedders are stored once, as in the original files, whose size the paper counts: see ``share``, which is in every recipe.
"""

from dither.recipes.entry import Entry
from dither.spec import Act, Bits, Codebook, Int
from dither.stages import Assign, Codebooks, Ranges, Rtn, Stage

__all__ = ["ENTRIES"]

PAPER = "2408.17131"
WORDS = {1: Codebook(8, 256), 2: Codebook(4, 256), 3: Codebook(2, 64), 4: Codebook(2, 256)}
"""By bits; the paper's are those of 2 and 3."""


def _vq4dit(bits: Bits) -> tuple[Stage, ...]:
    """``codebooks=off`` leaves k-means, ``codebooks.candidates=1`` assignments that are not calibrated."""
    act = None if bits.act is None else Act(Int(bits.act))
    code = WORDS.get(bits.weight, Int(bits.weight))
    return (Assign(weight=code, act=act, adaln=code, fit=True), Codebooks(), Rtn(), Ranges())


ENTRIES = (
    Entry(
        "vq4dit",
        PAPER,
        "Codewords for each layer, whose assignments are calibrated along trajectories.",
        Bits(2, None),
        _vq4dit,
    ),
)
