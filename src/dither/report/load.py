"""Read results files, and read values out of results that may be partial, older, or hostile.

A file counts as a result when it says `kind: "eval"` and a schema known here. Beyond that every value is optional:
the accessors return None for what is missing *or* of the wrong type, and a section with nothing to show says so.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from dither.errors import BadCheckpoint

__all__ = ["SCHEMA", "Results", "check_results", "items", "load", "lookup", "number", "numbers", "text"]

SCHEMA = 1
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
    """Raise BadCheckpoint naming `name` unless `content` is an evaluation result of a known schema."""
    if not isinstance(content, Mapping) or content.get("kind") != "eval":
        raise BadCheckpoint(f"{name} is not a dither evaluation result: it does not say kind 'eval'.")
    if content.get("schema") != SCHEMA:
        raise BadCheckpoint(f"{name} has schema {content.get('schema')!r}; this version reads schema {SCHEMA}.")


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


def text(results: object, path: str) -> str | None:
    """Return the text or number at a dotted path as text, or None."""
    value = lookup(results, path)
    if isinstance(value, str):
        return value or None
    finite = _finite(value)
    return None if finite is None else f"{finite:.10g}"


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
