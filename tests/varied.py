"""Results of mixed precision and of balancing, as `dither eval` writes them since widths may change over time."""

import math
from typing import Any

WIDE = {0: 8, 5: 8}
EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)
PARTS = {"qkv": "self", "attn_out": "self", "fc1": "ffn", "fc2": "ffn"}


def widths_of(block: int, part: str) -> tuple[list[int], list[int]]:
    """Weight and activation bits by quarter, from low to high noise."""
    weight = [8, 8, 4, 4] if block in (0, 5) else [6, 4, 4, 4] if part == "self" else [4, 4, 4, 4]
    act = [8, 8, 8, 6] if part == "ffn" and block > 1 else [8, 8, 6, 4]
    return weight, act


def by_time(weight: list[int], act: list[int]) -> list[dict[str, Any]]:
    """One entry a range, equal neighbours merged."""
    found: list[dict[str, Any]] = []
    for i, (w, a) in enumerate(zip(weight, act, strict=True)):
        if found and (found[-1]["weight_bits"], found[-1]["act_bits"]) == (w, a):
            found[-1]["high"] = EDGES[i + 1]
        else:
            found.append({"low": EDGES[i], "high": EDGES[i + 1], "weight_bits": w, "act_bits": a})
    return found


def vary(result: dict[str, Any]) -> dict[str, Any]:
    """The same results with widths by time, notes of every kind, and running bits."""
    notes: dict[str, Any] = {}
    for row in result["layers"]["rows"]:
        row |= {"by_time": None, "bank_bytes": 0}
        if row["weight"] is None:
            continue
        block, part = int(row["name"].split(".")[1]), PARTS[row["kind"]]
        weight, act = widths_of(block, part)
        row["weight"] = f"int{max(weight)} sym per row"
        row["by_time"] = by_time(weight, act)
        rough = (2.5 + block) * {"qkv": 1.5, "attn_out": 2.2, "fc1": 1.2, "fc2": 6.0}[row["kind"]]
        before = [round(rough * (1 + 0.9 * q * (row["kind"] == "fc2")), 3) for q in range(4)]
        loss = [2e-4 * (block + 1) ** 1.5 * (4 if part == "ffn" else 1) * math.exp(-1.5 * q) for q in range(4)]
        notes[row["name"]] = {
            "smooth_alpha": None if block == 2 else 0.35 + 0.05 * block,
            "incoherence": before,
            "incoherence_rotated": [round(3.1 + 0.2 * math.log(value), 3) for value in before],
            "rotated": max(before) > 8,
            "widths": {"weight": weight, "act": act},
            "sensitivity": {
                "role": "visual",
                "w4": {"mse": loss, "visual": [30 * value for value in loss]},
                "a4": {"mse": loss[::-1], "visual": [9 * value for value in loss]},
            },
        }
    result["notes"] = notes | {"mixed": {"judges": {"visual": "features of zoo:fashion"}, "weight": {"average": 4.75}}}
    result["size"] |= {"running_bits_per_weight": 4.83, "running_bits_per_activation": 7.02}
    return result
