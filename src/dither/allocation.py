"""Group sizes that a search found, as a file: searched once, and given to ``quantize`` ever after.

    {"kind": "dither-groups", "version": 1,
     "model": {"class": name, "layers": {layer: [N, K]}, "digest": of their full-precision weights},
     "stage": that searched, "groups": {layer: size}, "costs": {...}, "limits": {...}}

``dither quantize`` writes it beside the checkpoint of a recipe that searches, and ``--groups`` reads it:

    recipe = recipes.with_groups(recipes.get("rtn"), read_groups("groups.json", pipeline))

A file belongs to the very weights that were searched for. Nothing in it is evaluated, and nothing is trusted.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dither.checkpoint import header_of
from dither.errors import BadRecipe, Refused
from dither.models import adapter_for, linear_at
from dither.nn import QLinear
from dither.quantization import denoiser_of
from dither.spec import Recipe, fits
from dither.stages import SEARCHES

__all__ = ["FILE", "Allocation", "fingerprints", "found", "open_groups", "read_groups", "search_of"]

FILE = "groups.json"
KIND, VERSION = "dither-groups", 1
MOST_BYTES = 4 << 20
FIELDS: Mapping[str, Any] = {
    "model": Mapping[str, object],
    "stage": str,
    "groups": Mapping[str, int],
    "costs": Mapping[str, float],
    "limits": Mapping[str, float],
}
FIELDS_OF_MODEL: Mapping[str, Any] = {"class": str, "layers": Mapping[str, object], "digest": str}


@dataclass(frozen=True)
class Allocation:
    """Group sizes, and what they were searched for.

    Args:
        path: of the file, for messages.
        model: class of the denoiser.
        shapes: (N, K) of each layer.
        digest: of their full-precision weights.
        groups: size of each layer.
    """

    path: Path
    model: str
    shapes: Mapping[str, tuple[int, int]]
    digest: str
    groups: Mapping[str, int]

    def sizes_for(self, model: nn.Module) -> Mapping[str, int]:
        """``groups``, if this is the full-precision model that they were searched for.

        Raises:
            BadRecipe: it does not have one of the layers, or has it in another shape or with other weights.
            Refused: it is quantized already.
        """
        _check_full(model)
        modules = dict(model.named_modules())
        for name, shape in self.shapes.items():
            linear = modules.get(name)
            if not isinstance(linear, nn.Linear):
                raise BadRecipe(
                    f"'{self.path}' has a group size for layer {_short(name)} of a {_short(self.model)}, and this "
                    f"{type(model).__name__} has no such layer"
                )
            if (have := (linear.out_features, linear.in_features)) != shape:
                raise BadRecipe(
                    f"'{self.path}' is of a model whose layer {_short(name)} has shape {shape}, and here it has {have}"
                )
        if _digest(_prints(model, list(self.shapes))) != self.digest:
            raise BadRecipe(
                f"'{self.path}' is of a model with other weights: search again, or name the model that it belongs to"
            )
        return self.groups


def read_groups(path: str | Path, target: Any) -> Mapping[str, int]:
    """Group size of each layer, as a search stored them; for ``recipes.with_groups``.

    Args:
        path: of the file.
        target: the pipeline or denoiser in full precision that it was searched for.

    Raises:
        BadRecipe: the file is missing, damaged, too large, or belongs to another model; it is named.
        Refused: the model is quantized already.
    """
    return open_groups(path).sizes_for(denoiser_of(target))


def open_groups(path: str | Path) -> Allocation:
    """The same, before the model is there: BadRecipe if the file cannot be what ``dither quantize`` wrote."""
    path = Path(path)
    data = _json(path)
    if not isinstance(data, Mapping) or data.get("kind") != KIND:
        raise BadRecipe(f"'{path}' is not a file of group sizes: its kind must be '{KIND}'")
    if not fits(version := data.get("version"), int) or version != VERSION:
        raise BadRecipe(f"'{path}' has version {_short(version)}, and only {VERSION} is known")
    _check(path, data, FIELDS)
    about = data["model"]
    _check(path, about, FIELDS_OF_MODEL, "model.")
    shapes, groups = about["layers"], data["groups"]
    for name, shape in shapes.items():
        if not isinstance(shape, list) or len(shape) != 2 or not all(fits(n, int) and n > 0 for n in shape):
            raise BadRecipe(f"'{path}': model.layers gives layer {_short(name)} the shape {_short(shape)}")
    if apart := set(shapes) ^ set(groups):
        raise BadRecipe(f"'{path}' names layer {_short(min(apart))} only in one of model.layers and groups")
    for name, size in groups.items():
        if size < 1 or shapes[name][1] % size:
            raise BadRecipe(
                f"'{path}' gives layer {_short(name)} the group size {_short(size)}, which does not divide its "
                f"{_short(shapes[name][1])} channels"
            )
    known = {name: (n, k) for name, (n, k) in shapes.items()}
    return Allocation(path, about["class"], known, about["digest"], dict(groups))


def search_of(recipe: Recipe) -> str | None:
    """Tag of the stage that searches group sizes in this recipe, if one does."""
    return next((tag for tag, _ in recipe.stages if tag in SEARCHES), None)


def fingerprints(model: nn.Module) -> dict[str, bytes]:
    """Digest of each linear's full-precision weight; Refused if the model is quantized already."""
    _check_full(model)
    return _prints(model, [layer.name for layer in adapter_for(model).layers(model)])


def found(model: nn.Module, stage: str, prints: Mapping[str, bytes]) -> dict[str, Any]:
    """What a search found, as the JSON of the file.

    Args:
        model: quantized by a recipe with this stage.
        stage: tag of the one that searched.
        prints: ``fingerprints`` of it, before.
    """
    notes = (header_of(model).recipe or {})["notes"][stage]
    linears = {name: linear_at(model, name) for name in notes["groups"]}
    about = {
        "class": type(model).__name__,
        "layers": {name: [linear.out_features, linear.in_features] for name, linear in linears.items()},
        "digest": _digest({name: prints[name] for name in linears}),
    }
    kept = {key: notes[key] for key in ("groups", "costs", "limits")}
    return {"kind": KIND, "version": VERSION, "model": about, "stage": stage, **kept}


def _check_full(model: nn.Module) -> None:
    if any(isinstance(m, QLinear) for m in model.modules()):
        raise Refused(
            f"this {type(model).__name__} is quantized already: group sizes belong to the full-precision model"
        )


def _prints(model: nn.Module, names: Sequence[str]) -> dict[str, bytes]:
    return {name: _print(model, name) for name in names}


def _print(model: nn.Module, name: str) -> bytes:
    """Of the values, whatever dtype they are held in."""
    values = linear_at(model, name).weight.detach().float().cpu().contiguous().view(torch.uint8).numpy()
    return blake2b(values.data, digest_size=16).digest()


def _digest(prints: Mapping[str, bytes]) -> str:
    whole = blake2b(digest_size=16)
    for name in sorted(prints):
        whole.update(f"{name}\n".encode() + prints[name])
    return whole.hexdigest()


def _json(path: Path) -> Any:
    if not path.is_file():
        raise BadRecipe(
            f"'{path}' is {'not a file' if path.exists() else 'not there'}: a file of group sizes is needed"
        )
    if (size := path.stat().st_size) > MOST_BYTES:
        raise BadRecipe(f"'{path}' has {size} bytes, and a file of group sizes has at most {MOST_BYTES}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise BadRecipe(f"'{path}' is not JSON: {_short(str(e))}") from None


def _check(path: Path, data: Mapping[str, Any], fields: Mapping[str, Any], head: str = "") -> None:
    """BadRecipe names a field that is missing, unknown or of the wrong type."""
    for name in fields:
        if name not in data:
            raise BadRecipe(f"'{path}' has no field '{head}{name}'")
        if not fits(data[name], fields[name]) or not _finite(data[name]):
            raise BadRecipe(f"'{path}': field '{head}{name}' cannot be {_short(data[name])}")
    if unknown := set(data) - set(fields) - ({"kind", "version"} if not head else set()):
        raise BadRecipe(f"'{path}' has an unknown field {_short(head + min(unknown))}")


def _finite(value: Any) -> bool:
    """JSON in Python knows NaN and infinity; no field may be one."""
    values = value.values() if isinstance(value, Mapping) else (value,)
    return all(not isinstance(v, float) or abs(v) < inf for v in values)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
