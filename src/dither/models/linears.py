"""The linears of a model, quantized or not, under the names that they had before; and what their names say of them."""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias

from torch import nn

from dither.errors import BadModel
from dither.models.base import Kind, Layer

__all__ = ["Rule", "layer_by_rule", "linears_of", "need", "stack_of"]

TIMED = ("TimedLinear", "ViewedLinear")
"""Classes of ``dither.nn`` that stand in a linear's place and hold one or several, which the time selects. Known by name,
because families know nothing of how quantized layers run."""

Rule: TypeAlias = tuple[str, Kind, str]
"""Regular expression of a linear's whole name, what such a linear is for, and why it stays in full precision, if so."""

UNKNOWN = "not a part of this model family"


def linears_of(module: nn.Module) -> dict[str, nn.Linear]:
    """Name -> linear in order of registration; one with several variants is represented by its first."""
    found: dict[str, nn.Linear] = {}
    timed = ""
    for name, child in module.named_modules():
        if timed and name.startswith(timed):
            if isinstance(child, nn.Linear):
                found.setdefault(timed[:-1], child)
        elif type(child).__name__ in TIMED:
            timed = f"{name}."
        elif name and isinstance(child, nn.Linear):
            found[name] = child
    return found


def need(linears: Collection[str], names: Iterable[str], family: str) -> None:
    """BadModel names the first of these linears that the model lacks."""
    for name in names:
        if name not in linears:
            raise BadModel(f"This {family} has no linear {name!r}: was an adapter attached, or were projections fused?")


def stack_of(model: nn.Module, name: str) -> list[str]:
    """Names of the modules in this list of the model's own, in order."""
    stack = dict(model.named_children()).get(name)
    if not isinstance(stack, nn.ModuleList):
        raise BadModel(f"{type(model).__name__} has no list of modules named {name!r}.")
    return [f"{name}.{i}" for i in range(len(stack))]


def layer_by_rule(name: str, rules: Sequence[Rule], block: str) -> Layer:
    """The layer of this name by the first rule that fits.

    Args:
        name: of the layer.
        rules: of its family.
        block: expression of a block's name.
    """
    inside = re.match(rf"({block})\.", name)
    for pattern, kind, keep in rules:
        if re.fullmatch(pattern, name):
            return Layer(name, kind, keep, inside.group(1) if inside else "")
    return Layer(name, "other", UNKNOWN, inside.group(1) if inside else "")
