"""What a terminal says of widths that change over time."""

import pytest
import tiny
from rich.console import Console

from dither.cli import show


def layer(block, kind, weight, act=(8, 8), banks=0):
    """A row of two time ranges, from low to high noise."""
    times = [{"low": 0.5 * i, "high": 0.5 * (i + 1), "weight_bits": weight[i], "act_bits": act[i]} for i in range(2)]
    changing = len({*weight}) > 1 or len({*act}) > 1
    return {
        "name": f"blocks.{block}.{kind}", "kind": kind, "shape": [10, 10], "weight": f"int{max(weight)} sym per row",
        "act": f"int{max(act)} sym per token dynamic", "kernel": tiny.INTEGER, "simulated": False,
        "by_time": times if changing else None, "bank_bytes": banks, "reason": None,
    }  # fmt: skip


def printed(*parts):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    return [line.rstrip() for line in capture.get().splitlines()]


def test_nothing_is_said_where_nothing_changes():
    rows = [layer(0, "qkv", (4, 4)), layer(1, "qkv", (8, 8))]
    assert show.schedule(rows) == []
    assert [line.split()[:4] for line in printed(show.layer_table(rows))[1:]] == [
        ["qkv", "int4", "per", "row"], ["qkv", "int8", "per", "row"],
    ]  # fmt: skip


def test_a_kind_stays_one_line_and_patterns_name_their_blocks():
    rows = [layer(i, kind, (8, 4) if i in (0, 3) else (4, 4), (8, 6)) for kind in ("qkv", "fc1") for i in range(4)]
    table = printed(show.layer_table(rows))
    assert len(table) == 3
    assert "int4/8 per row" in table[1]
    assert "int6/8 per token" in table[1]
    assert [line.split() for line in printed(*show.schedule(rows))[1:]] == [
        ["bits", "by", "noise", "1-0.5", "0.5-0", "blocks"],
        ["qkv,", "fc1", "w4a6", "w8a8", "0,", "3"],
        ["w4a6", "w4a8", "1-2"],
    ]


def test_fixed_layers_of_a_kind_that_changes_are_told_too():
    found = printed(*show.schedule([layer(0, "qkv", (8, 8)), layer(1, "qkv", (8, 4)), layer(1, "fc1", (8, 8))]))
    assert [line.split() for line in found[2:]] == [["qkv", "w8a8", "w8a8", "0"], ["w4a8", "w8a8", "1"]]


def test_many_patterns_are_told_by_their_mean():
    rows = [layer(i, "qkv", (4 + i % 5, 3)) for i in range(6)]
    assert printed(*show.schedule(rows))[2].split() == ["qkv", "w3a8", "w5.7a8", "means", "of", "5", "patterns"]


def test_banks_are_told_with_and_without_other_widths():
    assert printed(*show.schedule([layer(0, "qkv", (4, 4), banks=2_000_000)])) == [
        "banks of weights beside the first take 2.00 MB"
    ]
    assert printed(*show.schedule([layer(0, "qkv", (8, 4), banks=10_000)]))[-1].endswith("take 0.01 MB")


@pytest.mark.parametrize(
    ("running", "said"),
    [
        ({}, "8.10 bits per weight"),
        ({"running_bits_per_weight": 8.0, "running_bits_per_activation": 8.0}, "8.10 bits per weight"),
        ({"running_bits_per_weight": 7.0, "running_bits_per_activation": 8.0}, "(w7.00 a8.00 run on average)"),
        ({"running_bits_per_weight": 4.75, "running_bits_per_activation": None}, "(w4.75 run on average)"),
        ({"running_bits_per_weight": 4.0, "running_bits_per_activation": 6.5}, "(w4.00 a6.50 run on average)"),
    ],
)
def test_running_bits_stand_beside_stored_ones(running, said, tmp_path):
    size = {"full_precision_bytes": 4e6, "file_bytes": 1e6, "ratio": 4.0, "bits_per_weight": 8.1, **running}
    assert show.saved(tmp_path, size).endswith(said)
