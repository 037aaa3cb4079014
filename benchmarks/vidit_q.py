"""``python -m benchmarks.vidit_q``: ViDiT-Q (arXiv 2406.02540) component by component, beside its baselines.

See ``components`` for how a row is measured, and how several processes share the rows.
"""

import sys

from benchmarks.components import Components, Line

MODELS = ("zoo:fashion", "zoo:fashion-hard")
WIDTHS = ("w8a8", "w6a6", "w4a8", "w4a4")
ENDS = ("w8a8", "w4a8")
"""Where variants and other baselines are measured."""
STATIC = "assign.act.static=true"
SEARCH = "smooth.search=[0.2,0.3,0.4,0.5,0.6,0.7,0.8]"
JUDGED = "smooth.rotation=0"
QUICK = ("mixed.samples=8", "mixed.steps=5")
"""Measures sensitivities in a fourth of the time."""


LINES = (
    Line("static", "vidit-q", ("smooth=off", "rotate=off", STATIC), WIDTHS),
    Line("static, 10 time groups", "vidit-q", ("smooth=off", "rotate=off", STATIC, "assign.time_groups=10"), ENDS),
    Line("dynamic per token", "vidit-q", ("smooth=off", "rotate=off"), WIDTHS),
    Line("+ scaling", "vidit-q", ("rotate=off",), WIDTHS),
    Line("+ rotation", "vidit-q", ("smooth=off",), WIDTHS),
    Line("+ both", "vidit-q", (), WIDTHS),
    Line("+ both, data-free scales", "vidit-q", ("smooth.data_free=true",), WIDTHS),
    Line("+ both, alpha searched", "vidit-q", (SEARCH, JUDGED), ENDS),
    Line("+ scaling, 2 time ranges", "vidit-q-timed", (), ("w4a8",)),
    Line("uniform, 5-bit weights", "vidit-q", ("assign.weight.bits=5", "assign.adaln.bits=5"), ("w4a8",)),
    Line("MP by time", "vidit-q-mp", (), ("w4a8",)),
    Line("MP by time", "vidit-q-mp", QUICK, ("w6a6", "w4a4")),
    Line("MP on the disk", "vidit-q-mp-stored", (), ("w4a8",)),
    Line("MP on the disk, integer program", "vidit-q-ilp", (), ("w4a8",)),
    Line("rtn", "rtn", (), ENDS),
    Line("smoothquant", "smoothquant", (), WIDTHS),
    Line("quarot", "quarot", (), WIDTHS),
    Line("vidit-q-released", "vidit-q-released", (), ("w8a8",)),
)
PAIRS = (
    ("dynamic per token", "static"),
    ("+ both", "static"),
    ("+ both", "dynamic per token"),
    ("+ both", "+ scaling"),
    ("+ both", "+ rotation"),
    ("+ both", "rtn"),
    ("+ both", "smoothquant"),
    ("+ both", "quarot"),
    ("+ both, data-free scales", "+ both"),
    ("+ both, alpha searched", "+ both"),
    ("MP by time", "+ both"),
    ("MP on the disk", "+ both"),
    ("MP on the disk, integer program", "MP on the disk"),
    ("MP on the disk, integer program", "uniform, 5-bit weights"),
)
STUDY = Components("benchmarks.vidit_q", __doc__, "vidit_q", LINES, PAIRS, MODELS, WIDTHS)

if __name__ == "__main__":
    sys.exit(STUDY.main(sys.argv[1:]))
