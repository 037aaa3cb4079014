"""What a named recipe is: a function from bit widths to stages, and what to say of it."""

from collections.abc import Callable
from dataclasses import dataclass

from dither.spec import Bits
from dither.stages import Stage

__all__ = ["Entry"]


@dataclass(frozen=True)
class Entry:
    """A named recipe.

    Args:
        name: on the command line.
        paper: arXiv id, or empty.
        about: one sentence: what it does, and how it differs from its neighbours.
        bits: default widths.
        stages: from widths to stages.
        floating: it also takes float8 in place of integers.
    """

    name: str
    paper: str
    about: str
    bits: Bits
    stages: Callable[[Bits], tuple[Stage, ...]]
    floating: bool = False
