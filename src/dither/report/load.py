"""Read results files, and read values out of results that may be partial, older, or hostile.

A file counts as a result when it says `kind: "eval"` (or `"compare"`: several of them, and how they rank) and a schema
known here. Beyond that every value is optional: the accessors return None for what is missing *or* of the wrong type,
and a section with nothing to show says so or is left out.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from dither.errors import BadCheckpoint

__all__ = [
    "SCHEMAS",
    "Results",
    "bounds",
    "check_results",
    "gaps",
    "items",
    "load",
    "lookup",
    "matrix",
    "number",
    "numbers",
    "records",
    "text",
    "texts",
]

SCHEMAS = (1, 2)
KINDS = ("eval", "compare")
Results: TypeAlias = Mapping[str, Any]


def load(path: str | Path) -> dict[str, Any]:
    """Read one results file; raise BadCheckpoint naming the file when it is not one."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadCheckpoint(f"cannot read {str(path)!r}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{str(path)!r} is not valid JSON ({error}).") from error
    check_results(content, repr(str(path)))
    return dict(content)


def check_results(content: object, name: str) -> None:
    """Raise BadCheckpoint naming `name` unless `content` is an evaluation or a comparison of a known schema."""
    if not isinstance(content, Mapping) or content.get("kind") not in KINDS:
        raise BadCheckpoint(f"{name} is not a dither evaluation result: it does not say kind 'eval' or 'compare'.")
    if content.get("schema") not in SCHEMAS:
        known = " and ".join(str(schema) for schema in SCHEMAS)
        raise BadCheckpoint(f"{name} has schema {content.get('schema')!r}; this version reads schemas {known}.")
    if content["kind"] == "compare":
        inner = content.get("results")
        if not isinstance(inner, list) or not inner:
            raise BadCheckpoint(f"{name} is a comparison of nothing: it holds no results.")
        for index, result in enumerate(inner):
            if not isinstance(result, Mapping) or result.get("kind") != "eval":
                raise BadCheckpoint(f"result {index + 1} in {name} is not an evaluation.")
            check_results(result, f"result {index + 1} in {name}")


def lookup(results: object, path: str) -> Any:
    """Return the value at a dotted path, or None."""
    value = results
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def number(results: object, path: str) -> float | None:
    """Return the finite number at a dotted path, or None."""
    return _finite(lookup(results, path))


def numbers(results: object, path: str) -> list[float]:
    """Return the list of finite numbers at a dotted path; an empty list when any entry is something else."""
    value = lookup(results, path)
    entries = [_finite(entry) for entry in value] if isinstance(value, list | tuple) else []
    found = [entry for entry in entries if entry is not None]
    return found if len(found) == len(entries) else []


def bounds(results: object, path: str) -> tuple[float, float] | None:
    """Return the interval `[low, high]` at a dotted path, or None."""
    found = numbers(results, path)
    return (min(found), max(found)) if len(found) == 2 else None


def gaps(results: object, path: str) -> list[float | None]:
    """Return the list at a dotted path with None where an entry is no finite number; empty when there is no list."""
    value = lookup(results, path)
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else []


def matrix(results: object, path: str, rows: int, columns: int) -> list[list[float | None]]:
    """Return the nested list at a dotted path when it has this shape, gaps as None; else an empty list."""
    value = lookup(results, path)
    found = [gaps({"row": row}, "row") for row in value] if isinstance(value, list | tuple) else []
    return found if len(found) == rows and all(len(row) == columns for row in found) else []


def records(results: object, path: str) -> list[Mapping[str, Any]]:
    """Return the mappings in the list at a dotted path, without anything else in it."""
    value = lookup(results, path)
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list | tuple) else []


def text(results: object, path: str) -> str | None:
    """Return the text or number at a dotted path as text, or None."""
    value = lookup(results, path)
    if isinstance(value, str):
        return value or None
    finite = _finite(value)
    return None if finite is None else f"{finite:.10g}"


def texts(results: object, path: str) -> list[str]:
    """Return the list at a dotted path with every entry as text; an empty list when there is none."""
    value = lookup(results, path)
    return [str(entry) for entry in value] if isinstance(value, list | tuple) else []


def items(results: object, path: str) -> list[tuple[str, Any]]:
    """Return the pairs of the mapping at a dotted path; an empty list when there is none."""
    value = lookup(results, path)
    return [(str(key), entry) for key, entry in value.items()] if isinstance(value, Mapping) else []


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None
