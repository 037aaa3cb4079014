"""``python -m benchmarks.q_dit``: Q-DiT (arXiv 2406.17343) and DiTAS (2409.07756) component by component, beside baselines.

See ``components`` for how a row is measured, and how several processes share the rows.
"""

import sys

from benchmarks.components import Components, Line

MODELS = ("zoo:fashion", "zoo:fashion-hard")
WIDTHS = ("w4a8", "w3a8", "w6a8", "w4a4")
MAIN = ("w4a8",)
UNIFORM = "evolve=off"
ROUNDED = "gptq=off"
PER_CHANNEL = ("assign.weight.group=0", "assign.act.grid.group=0", "assign.adaln.group=0")
STATIC = ("assign.act.static=true", "ranges.momentum=0.9")

LINES = (
    Line("RTN per channel, static", "q-dit", (UNIFORM, ROUNDED, *PER_CHANNEL, *STATIC), WIDTHS),
    Line("+ groups of 128", "q-dit", (UNIFORM, ROUNDED, *STATIC), WIDTHS),
    Line("RTN per channel, dynamic", "q-dit", (UNIFORM, ROUNDED, *PER_CHANNEL), WIDTHS),
    Line("+ groups, dynamic", "q-dit", (UNIFORM, ROUNDED), WIDTHS),
    Line("GPTQ per channel", "gptq", (), MAIN),
    Line("+ groups, dynamic, GPTQ", "q-dit", (UNIFORM,), WIDTHS),
    Line("+ searched: evolution", "q-dit", (), WIDTHS),
    Line("+ searched: integer program", "q-dit-ilp", (), WIDTHS),
    Line("+ searched: Hessian trace", "q-dit-trace", (), WIDTHS),
    Line("+ searched: halving", "q-dit-halving", (), WIDTHS),
    Line("evolution, RTN", "q-dit", (ROUNDED,), MAIN),
    Line("GPTQ as published", "q-dit", (UNIFORM, "gptq.act_order=false", "gptq.bias=false", "gptq.levels=0"), MAIN),
    Line("DiTAS", "ditas", (), WIDTHS),
    Line("DiTAS without branch", "ditas", ("low-rank=off",), WIDTHS),
    Line("DiTAS without smoothing", "ditas", ("smooth=off",), WIDTHS),
    Line("DiTAS as published", "ditas-paper", (), MAIN),
    Line("DiTAS + GPTQ", "ditas-gptq", (), WIDTHS),
    Line("DiTAS + GPTQ, without branch", "ditas-gptq", ("low-rank=off",), MAIN),
)
PAIRS = (
    ("+ groups, dynamic", "RTN per channel, dynamic"),
    ("+ groups, dynamic", "+ groups of 128"),
    ("+ groups, dynamic, GPTQ", "RTN per channel, dynamic"),
    ("+ groups, dynamic, GPTQ", "+ groups, dynamic"),
    ("+ groups, dynamic, GPTQ", "GPTQ per channel"),
    ("+ groups, dynamic, GPTQ", "GPTQ as published"),
    ("+ searched: evolution", "+ groups, dynamic, GPTQ"),
    ("+ searched: integer program", "+ groups, dynamic, GPTQ"),
    ("+ searched: Hessian trace", "+ groups, dynamic, GPTQ"),
    ("+ searched: halving", "+ groups, dynamic, GPTQ"),
    ("evolution, RTN", "+ groups, dynamic"),
    ("DiTAS", "RTN per channel, dynamic"),
    ("DiTAS", "DiTAS without branch"),
    ("DiTAS", "DiTAS without smoothing"),
    ("DiTAS + GPTQ", "DiTAS"),
    ("DiTAS + GPTQ", "+ groups, dynamic, GPTQ"),
    ("DiTAS + GPTQ", "DiTAS + GPTQ, without branch"),
)
STUDY = Components("benchmarks.q_dit", __doc__, "q_dit", LINES, PAIRS, MODELS, WIDTHS, steps=6)

if __name__ == "__main__":
    sys.exit(STUDY.main(sys.argv[1:]))
