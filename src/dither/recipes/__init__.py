"""Recipes: each method as an ordered tuple of stages with its defaults, to be read like its paper.

A recipe is a function from bit widths to stages; one file holds the recipes of one paper, or of a kind. After these stages
comes ``share``, which changes no value. ``--set STAGE.FIELD=VALUE``, ``--set STAGE=off`` and recipe files change the plain
data that comes out; nothing is evaluated.
"""

from dither.errors import BadRecipe
from dither.recipes import baselines, ditas, low_bit, q_dit, reconstruction, tq_dit, vidit_q, vq4dit
from dither.recipes.data import override, recipe_from, recipe_to, with_groups
from dither.recipes.entry import Entry
from dither.spec import Bits, Recipe
from dither.stages import Share, describe

__all__ = ["RECIPES", "Entry", "get", "names", "override", "recipe_from", "recipe_to", "with_groups"]

_ROOMS = (baselines, vidit_q, q_dit, ditas, tq_dit, reconstruction, vq4dit, low_bit)
RECIPES: dict[str, Entry] = {entry.name: entry for room in _ROOMS for entry in room.ENTRIES}


def names() -> tuple[str, ...]:
    """Names of all recipes."""
    return tuple(RECIPES)


def get(name: str, bits: Bits | str | None = None) -> Recipe:
    """The recipe of this name at these widths (its own default if None).

    Raises:
        BadRecipe: there is none of that name, or it is not for float8; the names are listed.
    """
    entry = RECIPES.get(name)
    if entry is None:
        raise BadRecipe(f"unknown recipe '{name}'; known are {', '.join(RECIPES)}")
    widths = entry.bits if bits is None else Bits.parse(bits) if isinstance(bits, str) else bits
    if widths.floating and not entry.floating:
        able = ", ".join(e.name for e in RECIPES.values() if e.floating)
        raise BadRecipe(f"recipe '{name}' is of integers and has no bits '{widths}'; those that have are {able}")
    return Recipe(entry.name, entry.paper, widths, describe((*entry.stages(widths), Share())))
