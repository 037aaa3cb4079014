"""Recipes: each method as an ordered tuple of stages with its defaults, to be read like its paper.

A recipe is a function from bit widths to stages. ``--set STAGE.FIELD=VALUE``, ``--set STAGE=off`` and recipe files change
the plain data that comes out; nothing is evaluated.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dither.errors import BadRecipe
from dither.spec import Act, Bits, Int, Recipe
from dither.stages import Assign, Clip, Ranges, Rotate, Rtn, Smooth, Stage, describe, stages_of

__all__ = ["RECIPES", "Entry", "get", "names", "override", "recipe_from", "recipe_to"]


@dataclass(frozen=True)
class Entry:
    """A named recipe.

    Args:
        name: on the command line.
        paper: arXiv id, or empty.
        about: one sentence.
        bits: default widths.
        stages: from widths to stages.
    """

    name: str
    paper: str
    about: str
    bits: Bits
    stages: Callable[[Bits], tuple[Stage, ...]]


def _assign(bits: Bits) -> Assign:
    """Per output channel, symmetric; activations dynamic per token; modulation linears weight-only, never under 4 bits."""
    act = None if bits.act is None else Act(Int(bits.act))
    return Assign(weight=Int(bits.weight), act=act, adaln=Int(max(bits.weight, 4)))


def _rtn(bits: Bits) -> tuple[Stage, ...]:
    return (_assign(bits), Rtn(), Ranges())


def _rtn_clip(bits: Bits) -> tuple[Stage, ...]:
    return (_assign(bits), Clip(), Rtn(), Ranges())


def _smoothquant(bits: Bits) -> tuple[Stage, ...]:
    return (Smooth(alpha=0.5), _assign(bits), Rtn(), Ranges())


def _quarot(bits: Bits) -> tuple[Stage, ...]:
    """Every rotation is online: nothing can be merged through adaLN, as QuaRot does in language models."""
    return (Rotate(), _assign(bits), Rtn(), Ranges())


def _vidit_q(bits: Bits) -> tuple[Stage, ...]:
    """Scales, rotations, one rounding; zero points everywhere, as in the paper's equation 2.

    A dynamic range per token is one per sample too, so that conditional and unconditional rows never share one. Modulation
    linears are weight-only, never under 4 bits; the paper keeps them in full precision (``assign.adaln=null``). Alpha is
    the one that the authors give for video models, in their convention.
    """
    act = None if bits.act is None else Act(Int(bits.act, symmetric=False))
    assign = Assign(weight=Int(bits.weight, symmetric=False), act=act, adaln=Int(max(bits.weight, 4), symmetric=False))
    return (Smooth(vidit_alpha=0.5665, online=True), Rotate(threshold=0.0), assign, Rtn(), Ranges())


def _vidit_q_released(bits: Bits) -> tuple[Stage, ...]:
    """What the released code sets: w8a8 without balancing; alpha 0.99 at 4 bits (PixArt-Sigma), else 0.375 (OpenSORA).

    Activations are symmetric at 8 bits, because its kernels are, and modulation linears stay in full precision. It also
    rounds weights twice, before the rotation and after it, and draws other signs at every load; that is not repeated.
    """
    balanced = bits != Bits(8, 8)
    alpha = 0.99 if bits.weight <= 4 else 0.375
    first: tuple[Stage, ...] = (Smooth(vidit_alpha=alpha, online=True), Rotate(threshold=0.0)) if balanced else ()
    act = None if bits.act is None else Act(Int(bits.act, symmetric=bits.act == 8))
    return (*first, Assign(weight=Int(bits.weight, symmetric=False), act=act), Rtn(), Ranges())


RECIPES: dict[str, Entry] = {
    e.name: e
    for e in (
        Entry(
            "rtn",
            "",
            "Round to nearest, per channel; activations dynamic per token. The plain baseline.",
            Bits(8, 8),
            _rtn,
        ),
        Entry(
            "rtn-clip",
            "",
            "Round to nearest inside ranges searched for the least squared error.",
            Bits(4, 8),
            _rtn_clip,
        ),
        Entry(
            "smoothquant",
            "2211.10438",
            "Channel scales folded into adaLN and V rows, then rtn.",
            Bits(8, 8),
            _smoothquant,
        ),
        Entry(
            "quarot",
            "2404.00456",
            "Inputs and weights rotated by randomized Hadamard matrices, then rtn.",
            Bits(4, 4),
            _quarot,
        ),
        Entry(
            "vidit-q",
            "2406.02540",
            "Channels balanced by scales and then by rotations, rounded once, with zero points.",
            Bits(4, 8),
            _vidit_q,
        ),
        Entry(
            "vidit-q-released",
            "2406.02540",
            "vidit-q as the released code sets it: w8a8 unbalanced, another alpha, symmetric 8-bit activations.",
            Bits(4, 8),
            _vidit_q_released,
        ),
    )
}


def names() -> tuple[str, ...]:
    """Names of all recipes."""
    return tuple(RECIPES)


def get(name: str, bits: Bits | str | None = None) -> Recipe:
    """The recipe of this name at these widths (its own default if None). BadRecipe lists the names."""
    entry = RECIPES.get(name)
    if entry is None:
        raise BadRecipe(f"unknown recipe '{name}'; known are {', '.join(RECIPES)}")
    widths = entry.bits if bits is None else Bits.parse(bits) if isinstance(bits, str) else bits
    return Recipe(entry.name, entry.paper, widths, describe(entry.stages(widths)))


def recipe_to(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON: ``{"name", "paper", "bits", "stages": [{"stage": tag, field: value, ...}]}``."""
    stages = [{"stage": tag, **fields} for tag, fields in recipe.stages]
    return {"name": recipe.name, "paper": recipe.paper, "bits": str(recipe.bits), "stages": stages}


def recipe_from(data: Any) -> Recipe:
    """The recipe that ``recipe_to`` wrote, or that a user wrote by hand. BadRecipe names what is wrong."""
    if not isinstance(data, Mapping):
        raise BadRecipe(f"a recipe must be a JSON object, not {type(data).__name__}")
    if unknown := set(data) - {"name", "paper", "bits", "stages"}:
        raise BadRecipe(f"a recipe has no field '{min(unknown)}'; its fields are name, paper, bits, stages")
    stages = data.get("stages")
    if (
        not isinstance(data.get("name"), str)
        or not isinstance(data.get("bits"), str)
        or not isinstance(stages, list | tuple)
    ):
        raise BadRecipe("a recipe needs a name, bits such as 'w4a8', and a list of stages")
    pairs = []
    for item in stages:
        if not isinstance(item, Mapping) or not isinstance(item.get("stage"), str):
            raise BadRecipe(f"stage {item!r} of recipe '{data['name']}' must be an object with a 'stage' tag")
        pairs.append((item["stage"], {k: v for k, v in item.items() if k != "stage"}))
    recipe = Recipe(data["name"], str(data.get("paper", "")), Bits.parse(data["bits"]), tuple(pairs))
    try:
        filled = describe(stages_of(recipe))  # defaults filled in, all checked
    except RecursionError:
        raise BadRecipe(f"recipe '{recipe.name}' is nested too deeply") from None
    return replace(recipe, stages=filled)


def override(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Apply ``STAGE.FIELD[.FIELD...]=VALUE`` settings; values are JSON, or text where they are not. BadRecipe if wrong.

    ``STAGE=off`` leaves a stage out.
    """
    data = json.loads(json.dumps(recipe_to(recipe)))
    for setting in settings:
        path, equals, text = setting.partition("=")
        tag, *keys = path.strip().split(".")
        targets = [s for s in data["stages"] if s["stage"] == tag]
        off = not keys and text.strip() == "off"
        if not equals or keys == ["stage"] or not (keys or off):
            raise BadRecipe(f"setting '{setting}': write STAGE.FIELD=VALUE, or STAGE=off")
        if not targets:
            have = ", ".join(s["stage"] for s in data["stages"])
            raise BadRecipe(f"recipe '{recipe.name}' has no stage '{tag}'; its stages are {have}")
        if off:
            data["stages"] = [s for s in data["stages"] if s["stage"] != tag]
            continue
        for target in targets:
            _assign_at(target, keys, text, setting)
    return recipe_from(data)


def _assign_at(target: dict[str, Any], keys: Sequence[str], text: str, setting: str) -> None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # also a number of thousands of digits, and brackets without end
        value = text
    node: Any = target
    for key in keys[:-1]:
        node = node.get(key)
        if not isinstance(node, dict):
            raise BadRecipe(f"setting '{setting}': '{key}' has no fields of its own")
    node[keys[-1]] = value
