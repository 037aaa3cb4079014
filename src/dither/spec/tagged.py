"""Specs as JSON and back, exactly, through a closed set of tags."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from dither.errors import BadCheckpoint
from dither.spec.formats import Act, Codebook, Float8, Gaussian, Int, Log2, Nested, Trellis, TwoRegion
from dither.spec.plan import AttentionSpec, LinearSpec, LowRank, Plan, Rotation, TableSpec, Timed, View, Views

__all__ = ["fits", "from_json", "to_json"]

_TAGGED: dict[str, type[Any]] = {
    c.kind: c
    for c in (
        Int,
        Float8,
        Nested,
        Codebook,
        Gaussian,
        Trellis,
        TwoRegion,
        Log2,
        Act,
        Rotation,
        LowRank,
        LinearSpec,
        Timed,
        View,
        Views,
        AttentionSpec,
        TableSpec,
        Plan,
    )
}


def to_json(value: Any) -> Any:
    """Plain JSON of a spec: dicts with a ``kind``, lists, numbers. Fields that equal their default are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out: dict[str, Any] = {"kind": value.kind} if hasattr(value, "kind") else {}
        for f in dataclasses.fields(value):
            item = getattr(value, f.name)
            if f.default is dataclasses.MISSING or item != f.default:
                out[f.name] = to_json(item)
        return out
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return value


def from_json(data: Any) -> Any:
    """The spec that ``to_json`` wrote. Unknown kinds, fields or types raise BadCheckpoint; nothing is evaluated."""
    if isinstance(data, list):
        return tuple(from_json(v) for v in data)
    if not isinstance(data, Mapping):
        return data
    if "kind" not in data:
        return {k: from_json(v) for k, v in data.items()}
    cls = _TAGGED.get(data["kind"]) if isinstance(data["kind"], str) else None
    if cls is None:
        raise BadCheckpoint(f"plan names an unknown kind {data['kind']!r}; known are {', '.join(_TAGGED)}")
    names = {f.name for f in dataclasses.fields(cls)}
    if unknown := set(data) - names - {"kind"}:
        raise BadCheckpoint(f"plan gives {cls.kind} an unknown field {sorted(unknown)[0]!r}")
    fields = {k: from_json(v) for k, v in data.items() if k != "kind"}
    hints = typing.get_type_hints(cls)
    for name, item in fields.items():
        if not fits(item, hints[name]):
            raise BadCheckpoint(f"plan gives {cls.kind}.{name} the value {item!r} of the wrong type")
    try:
        return cls(**fields)
    except TypeError as e:
        raise BadCheckpoint(f"plan gives an incomplete {cls.kind}: {e}") from None


def fits(item: Any, hint: Any) -> bool:
    """Whether ``item`` is of the type that the annotation names (unions, tuples, mappings, classes)."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(item, a) for a in args)
    if origin is tuple:
        return isinstance(item, tuple) and all(fits(v, args[0]) for v in item)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(item, Mapping) and all(fits(v, args[1]) for v in item.values())
    if hint is float:
        return isinstance(item, float | int) and not isinstance(item, bool)
    if hint is int:
        return isinstance(item, int) and not isinstance(item, bool)
    return isinstance(item, hint) if isinstance(hint, type) else hint is Any
