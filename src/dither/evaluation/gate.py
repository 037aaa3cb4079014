"""Conditions under which a result counts as a failure: `--fail-if 'psnr<30'`.

Grammar: `NAME OP NUMBER`, OP one of < <= > >=. NAME is a dotted path into the results, or one of a few short names.
There is no `eval` and no arithmetic; what cannot be read exactly is refused.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dither.errors import BadValue

__all__ = ["ALIASES", "Condition", "check", "parse_condition"]

ALIASES: Mapping[str, str] = {
    "psnr": "psnr_db.mean",
    "ssim": "ssim.mean",
    "fd": "fd.to_full_precision",
    "size": "size.file_bytes",
    "bits": "size.bits_per_weight",
}

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

CONDITION = re.compile(
    r"\s*(?P<name>[A-Za-z_][\w.]*)\s*(?P<op><=|>=|<|>)\s*(?P<number>[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?)\s*",
    re.ASCII,
)


@dataclass(frozen=True)
class Condition:
    """A failure condition: the value at `path` compared with `limit`."""

    text: str
    path: str
    op: str
    limit: float


def parse_condition(text: str) -> Condition:
    """Read `NAME OP NUMBER`; call it before sampling, so that a typing error costs no time."""
    match = CONDITION.fullmatch(text)
    if match is None:
        raise BadValue(f"cannot read the condition {text!r}: it must be NAME OP NUMBER, such as 'psnr<30'.")
    limit = float(match["number"])
    if not math.isfinite(limit):
        raise BadValue(f"the number in the condition {text!r} is too large.")
    return Condition(text, ALIASES.get(match["name"], match["name"]), match["op"], limit)


def check(results: Mapping[str, Any], conditions: Sequence[str]) -> list[str]:
    """Return one sentence for each condition that holds, that is, for each failure; an empty list is a pass."""
    failures = []
    for condition in [parse_condition(text) for text in conditions]:
        value = _value(results, condition)
        if OPERATORS[condition.op](value, condition.limit):
            failures.append(f"{condition.path} is {value:.6g}, so {condition.text.strip()!r} holds.")
    return failures


def _value(results: Mapping[str, Any], condition: Condition) -> float:
    value: Any = results
    for key in condition.path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise BadValue(f"the condition {condition.text!r} names {condition.path!r}, which the results do not have.")
        value = value[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadValue(
            f"the condition {condition.text!r} names {condition.path!r}, which was not measured as a number."
        )
    return float(value)
