"""How a plan is found: the widths asked for, and the stages of a recipe."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dither.errors import BadRecipe

__all__ = ["Bits", "Recipe"]


@dataclass(frozen=True)
class Bits:
    """Widths asked for on the command line, ``w4a8`` or ``w4`` (activations stay full precision)."""

    weight: int
    act: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Bits":
        """Read ``w<bits>`` or ``w<bits>a<bits>``; a16 means full-precision activations. Raises BadRecipe."""
        found = re.fullmatch(r"w([1-8])(?:a([1-8]|16))?", text.lower())
        if found is None:
            raise BadRecipe(f"bits '{text[:20]}': write w<bits> or w<bits>a<bits>, each 1 to 8 (a16: full precision)")
        weight, act = found.groups()
        return cls(int(weight), None if act in (None, "16") else int(act))

    def __str__(self) -> str:
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
