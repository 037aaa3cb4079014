"""The page of results whose widths change over time, and what broken or hostile ones do to it."""

import copy

import pytest
from pages import JUNK, hostile_copy, parse, paths, titles, visible

from dither.report import render


def test_mixed_precision_has_sections_of_its_own(mixed_result):
    found = titles(render([mixed_result]))
    assert found[found.index("Bits by layer") + 1 : found.index("Activation ranges")] == [
        "Allocation", "Sensitivity", "Channel balance",
    ]  # fmt: skip
    shown = " ".join(visible(render([mixed_result])).split())
    for part in (
        "8.17 bits per weight in the quantized layers, 8.90 over the whole model; 4.83 run on average over time",
        "all overhead counted; 4.83 run on average",
        "8.17 4.83 run",
        "4/6/8 bits int4/6/8 per-token dynamic, by noise level",
        "int4/8 sym per row weights by noise level, int4/6/8 per-token dynamic activations by noise level",
    ):
        assert part.replace("per-token", "sym per-token") in shown, part


def test_hostile_allocation_stays_text(mixed_result):
    hostile = hostile_copy(mixed_result) | {"kind": "eval", "schema": 2}
    clean, dirty = parse(render([mixed_result])), parse(render([hostile]))
    assert [tag for tag, _ in dirty.tags].count("script") == 2
    assert not any(name.startswith("on") for _, attrs in dirty.tags for name in attrs)
    assert {tag for tag, _ in dirty.tags} <= {tag for tag, _ in clean.tags}
    assert "Allocation" in titles(render([hostile]))


def lookup(value, path):
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize("junk", [*JUNK, -1, 5e-324, 1e300])
def test_any_mistyped_note_or_width_leaves_a_page(mixed_result, junk):
    rows, notes = mixed_result["layers"]["rows"], mixed_result["notes"]
    name = next(iter(notes))
    small = {key: mixed_result[key] for key in ("kind", "schema", "size")}
    some = small | {"layers": {"rows": rows[:7]}, "notes": {key: notes[key] for key in (name, "mixed")}}
    for path in paths(some["notes"]):
        partial = copy.deepcopy(some)
        place = partial["notes"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = junk
        assert "</html>" in render([partial]), path
        if isinstance(lookup(some["notes"], path), list):
            place[path[-1]] = [1.5, junk, 2.5]
            assert "</html>" in render([partial]), path
    for key in ("by_time", "bank_bytes", "weight", "kind", "shape", "name"):
        assert "</html>" in render([small | {"layers": {"rows": [rows[0] | {key: junk}, rows[1]]}}]), key
    for key in ("low", "high", "weight_bits", "act_bits"):
        times = [rows[0]["by_time"][0] | {key: junk}, *rows[0]["by_time"][1:]]
        assert "</html>" in render([small | {"layers": {"rows": [rows[0] | {"by_time": times}, rows[1]]}}]), key
