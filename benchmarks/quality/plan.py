"""Which rows to measure: a product of models, recipes and widths, then single changes to a recipe, each under a name."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MODELS", "RECIPES", "SWITCHES", "WIDTHS", "Asked", "Switch", "product", "switched"]


@dataclass(frozen=True)
class Asked:
    """What a row measures.

    Args:
        model: as ``dither quantize`` takes it.
        recipe, bits: of ``dither quantize --recipe --bits``.
        settings: of ``--set``.
        switch: what the settings change, in words; empty for a recipe as it is.
    """

    model: str
    recipe: str
    bits: str
    settings: tuple[str, ...] = ()
    switch: str = ""


@dataclass(frozen=True)
class Switch:
    """One change to one recipe at one width."""

    name: str
    recipe: str
    bits: str
    settings: tuple[str, ...]


MODELS = ("zoo:digits", "zoo:fashion", "zoo:fashion-hard")
RECIPES = ("rtn", "rtn-clip", "smoothquant")
WIDTHS = ("w8a8", "w6a8", "w4a8", "w4a4")
STATIC = "assign.act.static=true"
SWITCHES = (
    Switch("static activations", "rtn", "w8a8", (STATIC,)),
    Switch("static, 10 time groups", "rtn", "w8a8", (STATIC, "assign.time_groups=10")),
    Switch(
        "static, 10 time groups x 2 branches", "rtn", "w8a8", (STATIC, "assign.time_groups=10", "assign.branches=2")
    ),
    Switch("asymmetric", "rtn", "w4a8", ("assign.weight.symmetric=false", "assign.act.grid.symmetric=false")),
    Switch("weight groups of 64", "rtn", "w4a8", ("assign.weight.group=64",)),
    Switch("modulation at 8 bits", "rtn", "w4a8", ("assign.adaln.bits=8",)),
    Switch("online scales too", "smoothquant", "w4a8", ("smooth.online=true",)),
    Switch("alpha searched", "smoothquant", "w4a8", ("smooth.search=[0.3,0.4,0.5,0.6,0.7,0.8]",)),
)


def product(
    models: Sequence[str], recipes: Sequence[str], widths: Sequence[str], settings: Sequence[str]
) -> list[Asked]:
    """Every recipe at every width on every model. Settings apply to all rows and are what these rows are called by."""
    name = " ".join(settings)
    return [Asked(m, r, bits, tuple(settings), name) for m in models for r in recipes for bits in widths]


def switched(models: Sequence[str], switches: Sequence[Switch]) -> list[Asked]:
    """Every switch on every model."""
    return [Asked(m, s.recipe, s.bits, s.settings, s.name) for m in models for s in switches]
