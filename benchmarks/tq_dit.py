"""``python -m benchmarks.tq_dit [--steps 10|25|50]``: TQ-DiT (arXiv 2502.04056), PTQ4DiT (2405.16005), Q-Diffusion
(2302.04304) and TCAQ-DM (2412.16700) component by component, at several numbers of sampling steps.

One quantized model serves every number of steps: ranges are looked up by noise level. All lines are measured at 10 steps,
where a row is cheapest; methods, and what each of their components adds, at 25 and 50 as well. See ``components`` for how a
row is measured, and how several processes share the rows.
"""

import sys
from collections.abc import Mapping

from benchmarks.components import Components, Line

MODELS = ("zoo:fashion", "zoo:fashion-hard")
WIDTHS = ("w8a8", "w6a6", "w4a8")
TIMELESS = "time-groups=off"
ONE_REGION = "regions=off"
SEARCHED = "fisher-scales=off"
SYMMETRIC = "assign.act.grid.symmetric=true"
BY_HEAD = "attention.channels=false"
TQ_DIT = "TQ-DiT: + ranges of channels of v"
MORE_TOKENS = "+ Fisher scales, by 4 times the tokens"
PRODUCTS = "+ Fisher scales, of attention's products too"
UNBALANCED = "smooth=off"
ROUNDED = "adaround=off"


def by_time(groups: int) -> Line:
    return Line(f"+ time groups, {groups}", "tq-dit", (SEARCHED, BY_HEAD, f"time-groups.groups={groups}"), WIDTHS)


LINES = (
    Line("static RTN, symmetric", "tq-dit", (ONE_REGION, TIMELESS, SEARCHED, BY_HEAD, SYMMETRIC), WIDTHS),
    Line("static RTN", "tq-dit", (ONE_REGION, TIMELESS, SEARCHED, BY_HEAD), WIDTHS),
    Line("+ two regions", "tq-dit", (TIMELESS, SEARCHED, BY_HEAD), WIDTHS),
    *(by_time(groups) for groups in (2, 5, 10, 25)),
    Line("+ learned time groups, 10", "tq-dit", (SEARCHED, BY_HEAD, "time-groups.learned=true"), WIDTHS),
    Line("+ Fisher scales", "tq-dit", (BY_HEAD,), WIDTHS),
    Line("+ Fisher scales, without time groups", "tq-dit", (BY_HEAD, TIMELESS), WIDTHS),
    Line(MORE_TOKENS, "tq-dit", (BY_HEAD, "fisher-scales.rows=2048", "fisher-scales.calls=64"), WIDTHS),
    Line(PRODUCTS, "tq-dit-paper", ("fisher-attention.top=0", "ranges.top=0"), WIDTHS),
    Line(TQ_DIT, "tq-dit", (), WIDTHS),
    Line("TQ-DiT as released", "tq-dit-released", (), WIDTHS),
    Line("TQ-DiT, balanced", "tq-dit-balanced", (), WIDTHS),
    Line("static RTN, zero points", "ptq4dit", (UNBALANCED, ROUNDED), WIDTHS),
    Line("+ balanced channels", "ptq4dit", (ROUNDED, "smooth.aggregate=max"), WIDTHS),
    Line("+ Spearman's weights", "ptq4dit", (ROUNDED,), WIDTHS),
    Line("PTQ4DiT: + reconstruction", "ptq4dit", (), WIDTHS),
    Line("reconstruction alone", "ptq4dit", (UNBALANCED,), WIDTHS),
    Line("Q-Diffusion", "q-diffusion", (), WIDTHS),
    Line("TCAQ-DM", "tcaq-dm", (), WIDTHS),
)
PAIRS = (
    ("+ two regions", "static RTN"),
    ("+ time groups, 10", "+ two regions"),
    ("+ time groups, 25", "+ time groups, 10"),
    ("+ learned time groups, 10", "+ time groups, 10"),
    ("+ Fisher scales", "+ time groups, 10"),
    ("+ Fisher scales", "+ Fisher scales, without time groups"),
    (MORE_TOKENS, "+ Fisher scales"),
    (PRODUCTS, "+ Fisher scales"),
    (MORE_TOKENS, "+ time groups, 10"),
    (TQ_DIT, "+ Fisher scales"),
    (TQ_DIT, "static RTN"),
    (TQ_DIT, "static RTN, symmetric"),
    (TQ_DIT, "TQ-DiT as released"),
    ("TQ-DiT, balanced", TQ_DIT),
    ("TQ-DiT, balanced", "static RTN"),
    ("TQ-DiT, balanced", "static RTN, symmetric"),
    ("+ balanced channels", "static RTN, zero points"),
    ("+ Spearman's weights", "+ balanced channels"),
    ("PTQ4DiT: + reconstruction", "+ Spearman's weights"),
    ("PTQ4DiT: + reconstruction", "reconstruction alone"),
    ("PTQ4DiT: + reconstruction", "Q-Diffusion"),
    ("PTQ4DiT: + reconstruction", "TCAQ-DM"),
)
AT_10_ALONE = frozenset({
    "static RTN, symmetric", "+ learned time groups, 10", "+ Fisher scales, without time groups", MORE_TOKENS,
    PRODUCTS, "TQ-DiT as released", "reconstruction alone", "TCAQ-DM",
})  # fmt: skip
"""Lines that are not measured at more steps: other ways to do what a line beside them does."""


def study(steps: int) -> Components:
    """The lines of a number of steps, and the result that they go into."""
    lines = LINES if steps == 10 else tuple(line for line in LINES if line.name not in AT_10_ALONE)
    name = "tq_dit" if steps == 10 else f"tq_dit_{steps}"
    choice = () if steps == 10 else ("--steps", str(steps))
    return Components("benchmarks.tq_dit", __doc__, name, lines, PAIRS, MODELS, WIDTHS, steps, choice)


STUDIES: Mapping[int, Components] = {steps: study(steps) for steps in (10, 25, 50)}


def main(words: list[str]) -> int:
    """Exit status: 1 if a row failed."""
    asked = STUDIES[10].parsed(words).steps
    return STUDIES.get(asked, STUDIES[10]).main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
