"""How a plan is found: the widths asked for, and the stages of a recipe."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dither.errors import BadRecipe

__all__ = ["Bits", "Recipe"]


@dataclass(frozen=True)
class Bits:
    """Widths asked for on the command line: ``w4a8``, ``w4`` (activations stay full precision), or ``fp8``.

    Args:
        weight: of each weight.
        act: of each activation; None: full precision.
        floating: both are float8 (``Float8``), not integers of these widths, which are 8.
    """

    weight: int
    act: int | None = None
    floating: bool = False

    def __post_init__(self) -> None:
        if self.floating and (self.weight, self.act) != (8, 8):
            raise BadRecipe(f"floating-point numbers of w{self.weight}a{self.act or 16}: there are those of w8a8 alone")

    @classmethod
    def parse(cls, text: str) -> "Bits":
        """Read ``w<bits>``, ``w<bits>a<bits>`` (a16 means full-precision activations) or ``fp8``. Raises BadRecipe."""
        if text.lower() == "fp8":
            return cls(8, 8, floating=True)
        found = re.fullmatch(r"w([1-8])(?:a([1-8]|16))?", text.lower())
        if found is None:
            raise BadRecipe(
                f"bits '{text[:20]}': write w<bits> or w<bits>a<bits>, each 1 to 8 (a16: full precision), or fp8"
            )
        weight, act = found.groups()
        return cls(int(weight), None if act in (None, "16") else int(act))

    def __str__(self) -> str:
        if self.floating:
            return "fp8"
        return f"w{self.weight}" + (f"a{self.act}" if self.act is not None else "")


@dataclass(frozen=True)
class Recipe:
    """How a plan is found: an ordered tuple of stages, plain data here; ``dither.stages`` gives them meaning.

    Args:
        name: of the method, as on the command line.
        paper: arXiv id, or empty.
        bits: widths asked for.
        stages: (tag, fields) of each stage, in the order they run.
    """

    name: str
    paper: str
    bits: Bits
    stages: tuple[tuple[str, Mapping[str, Any]], ...]
