"""Recipes as plain data: JSON there and back, and the settings that change it. Nothing is evaluated."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dither.errors import BadRecipe
from dither.spec import Bits, Recipe
from dither.stages import SEARCHES, Assign, Groups, describe, stages_of

__all__ = ["override", "recipe_from", "recipe_to", "with_groups"]


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
        raise BadRecipe("a recipe needs a name, bits such as 'w4a8' or 'fp8', and a list of stages")
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

    ``STAGE=off`` leaves a stage out. A recipe with two stages of one tag has both changed.
    """
    data = json.loads(json.dumps(recipe_to(recipe)))
    off: set[str] = set()
    for setting in settings:
        path, equals, text = setting.partition("=")
        tag, *keys = path.strip().split(".")
        leave_out = not keys and text.strip() == "off"
        if not equals or keys == ["stage"] or not (keys or leave_out):
            raise BadRecipe(f"setting '{setting}': write STAGE.FIELD=VALUE, or STAGE=off")
        if tag in off:
            raise BadRecipe(f"setting '{setting}': an earlier setting has switched stage '{tag}' off")
        targets = [s for s in data["stages"] if s["stage"] == tag]
        if not targets:
            have = ", ".join(dict.fromkeys(s["stage"] for s in data["stages"]))
            raise BadRecipe(f"recipe '{recipe.name}' has no stage '{tag}'; its stages are {have}")
        if leave_out:
            off.add(tag)
            data["stages"] = [s for s in data["stages"] if s["stage"] != tag]
        else:
            for target in targets:
                _assign_at(target, keys, text, setting)
        if not data["stages"]:
            raise BadRecipe(
                f"setting '{setting}' switches the last stage of recipe '{recipe.name}' off: nothing is left"
            )
    return recipe_from(data)


def with_groups(recipe: Recipe, sizes: Mapping[str, int]) -> Recipe:
    """The recipe with these group sizes, such as ``allocation.read_groups`` gives, in place of its search for them.

    A stage ``groups`` takes the place of the one that searches, or stands right behind ``assign`` where none does.

    Args:
        recipe: any that assigns formats.
        sizes: by layer name.

    Raises:
        BadRecipe: it neither searches nor assigns.
    """
    ((tag, fields),) = describe((Groups(dict(sizes)),))
    stages = [stage for stage in recipe.stages if stage[0] != tag]
    tags = [t for t, _ in stages]
    if searching := [i for i, t in enumerate(tags) if t in SEARCHES]:
        stages[searching[0]] = (tag, fields)
    elif Assign.tag in tags:
        stages.insert(tags.index(Assign.tag) + 1, (tag, fields))
    else:
        raise BadRecipe(
            f"recipe '{recipe.name}' has no stage '{Assign.tag}', so that no layer has groups to give sizes to"
        )
    return replace(recipe, stages=tuple(stages))


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
