"""Formats that a stage knows: one that has nothing to do says so, instead of passing for a method that was applied."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from dither.errors import BadRecipe
from dither.spec import Act, Float8, LinearSpec

__all__ = ["check_some", "check_widths", "of_width"]


def check_some(stage: str, known: str, found: Collection[str], specs: Mapping[str, LinearSpec]) -> None:
    """BadRecipe where weights are to be quantized, and none of them is of a format that a stage works on.

    Args:
        stage: its tag.
        known: names of its formats, for the message.
        found: layers whose weights are to be of these.
        specs: of all layers.
    """
    others = [(name, spec.weight) for name, spec in specs.items() if spec.weight is not None]
    if others and not found:
        name, fmt = others[0]
        raise BadRecipe(
            f"{stage} works on {known}, and no layer is to have such weights ('{name}': {fmt}): leave '{stage}' out"
        )


def check_widths(what: str, name: str, act: Act) -> None:
    """BadRecipe where the input of a layer is on a grid of one width, and ``what`` would give it another."""
    if isinstance(act.grid, Float8):
        raise BadRecipe(f"{what}: the input of layer '{name}' is {act}, and float8 has no other widths")


def of_width(act: Act, bits: int) -> Act:
    """The same in codes of this width; ``check_widths`` comes before."""
    assert not isinstance(act.grid, Float8)
    return replace(act, grid=replace(act.grid, bits=bits))
