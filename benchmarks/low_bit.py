"""``python -m benchmarks.low_bit``: VQ4DiT (arXiv 2408.17131), its baselines, and recipe ``dither`` component by component,
at 2, 3 and 4 bits.

Modulation linears are rounded to the same width everywhere: they are a third of the weights. ``trellis codes alone`` and
what follows add one component of ``dither`` each. See ``components`` for how a row is measured, and how several processes
share the rows.
"""

import json
import sys

from benchmarks.components import Components, Line
from dither.recipes.vq4dit import WORDS
from dither.spec import Gaussian, to_json

MODELS = ("zoo:fashion", "zoo:fashion-hard")
WIDTHS = ("w2", "w3", "w4")
ALONE = ("rotate=off", "gptq=off", "tune=off")
WITHIN = ("gptq.outputs=0", "tune=off")
"""Errors are passed on from input to input alone."""
GROUP = 64


def _with_modulation(name: str, recipe: str, bits: str, group: int = 0) -> Line:
    """A recipe of integers whose modulation has as many bits as all else."""
    grain = tuple(f"assign.{side}.group={group}" for side in ("weight", "adaln")) if group else ()
    fit = ("assign.fit=true",) if group else ()
    return Line(name, recipe, (f"assign.adaln.bits={bits[1:]}", *grain, *fit), (bits,))


def _words(name: str, bits: str, *off: str) -> Line:
    """Universal words, as long and as many as VQ4DiT's, in the place of trellis codes."""
    words = WORDS[int(bits[1:])]
    fields = json.dumps(to_json(Gaussian(words.dim, words.size)))
    return Line(name, "dither", (f"assign.weight={fields}", f"assign.adaln={fields}", *off), (bits,))


LINES = (
    *(_with_modulation("RTN", "rtn", bits) for bits in WIDTHS),
    *(_with_modulation(f"RTN, groups of {GROUP}", "rtn", bits, GROUP) for bits in WIDTHS),
    *(_with_modulation("GPTQ", "gptq", bits) for bits in WIDTHS),
    *(_with_modulation(f"GPTQ, groups of {GROUP}", "gptq", bits, GROUP) for bits in WIDTHS),
    Line("k-means", "vq4dit", ("codebooks=off",), WIDTHS),
    Line("VQ4DiT, n = 1", "vq4dit", ("codebooks.candidates=1",), WIDTHS),
    Line("VQ4DiT, n = 2", "vq4dit", (), WIDTHS),
    Line("VQ4DiT, n = 2, slower ratios", "vq4dit", ("codebooks.lr_ratios=0.01",), WIDTHS),
    Line("VQ4DiT, n = 3", "vq4dit", ("codebooks.candidates=3",), WIDTHS),
    Line("VQ4DiT, n = 2, all at once", "vq4dit", ("codebooks.progressive=false", "codebooks.inverse=false"), WIDTHS),
    *(_words("universal words, rotated", bits, "gptq=off", "tune=off") for bits in WIDTHS),
    *(_words("universal words, errors passed on", bits, *WITHIN) for bits in WIDTHS),
    Line("trellis codes alone", "dither", ALONE, WIDTHS),
    Line("+ rotations", "dither", ALONE[1:], WIDTHS),
    Line("+ errors passed on", "dither", WITHIN, WIDTHS),
    Line("+ to other outputs too", "dither", ALONE[2:], WIDTHS),
    Line("dither: + tuning", "dither", (), WIDTHS),
)
PAIRS = (
    ("VQ4DiT, n = 1", "k-means"),
    ("VQ4DiT, n = 2", "k-means"),
    ("VQ4DiT, n = 2", "VQ4DiT, n = 1"),
    ("VQ4DiT, n = 2, slower ratios", "VQ4DiT, n = 2"),
    ("VQ4DiT, n = 2, slower ratios", "VQ4DiT, n = 1"),
    ("VQ4DiT, n = 3", "VQ4DiT, n = 2"),
    ("VQ4DiT, n = 2, all at once", "VQ4DiT, n = 2"),
    ("universal words, errors passed on", "universal words, rotated"),
    ("+ rotations", "trellis codes alone"),
    ("+ errors passed on", "+ rotations"),
    ("+ errors passed on", "universal words, errors passed on"),
    ("+ to other outputs too", "+ errors passed on"),
    ("dither: + tuning", "+ to other outputs too"),
    ("dither: + tuning", "VQ4DiT, n = 2"),
    ("dither: + tuning", "RTN"),
    ("dither: + tuning", "GPTQ"),
    ("dither: + tuning", f"GPTQ, groups of {GROUP}"),
)
STUDY = Components("benchmarks.low_bit", __doc__, "low_bit", LINES, PAIRS, MODELS, WIDTHS)


def main(words: list[str]) -> int:
    """Exit status: 1 if a row failed."""
    return STUDY.main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
