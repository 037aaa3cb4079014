"""The map of layers and time ranges: when there is one, what shares a line, and what it says of bytes."""

import pytest

from dither.report.allocation import allocation


def layer(name, kind="qkv", weight=(4,), act=(8,), **more):
    """A row whose widths by equal ranges, from low to high noise, are these."""
    n = max(len(weight), len(act))
    weight, act = weight * (n // len(weight)), act * (n // len(act))
    times = [
        {"low": i / n, "high": (i + 1) / n, "weight_bits": w, "act_bits": a}
        for i, (w, a) in enumerate(zip(weight, act, strict=True))
    ]
    words = {"weight": f"int{weight[0]} sym per row", "act": f"int{act[0]} sym per token dynamic"}
    return {"name": name, "kind": kind, "shape": [10, 10], **words, "by_time": times if n > 1 else None, **more}


def drawn(*rows, **size):
    return allocation({"layers": {"rows": list(rows)}, "size": size})


def lines(found):
    return [(g.title, x.name, [s.shown for s in x.squares]) for g in found.groups for x in g.lines]


def test_no_map_where_nothing_varies():
    assert drawn() is None
    assert drawn(layer("blocks.0.q"), layer("blocks.1.q"), layer("blocks.1.mod", "adaln", weight=(8,))) is None


def test_a_map_of_layers_that_differ_needs_no_time():
    found = drawn(layer("blocks.0.q"), layer("blocks.1.q", weight=(8,)), layer("blocks.2.q", weight=(8,)))
    assert lines(found) == [("0", "qkv", ["4"]), ("1–2", "qkv", ["8"])]
    assert [(side.title, side.heads[0][0], side.means) for side in found.sides] == [("Weight bits", "always", ["6.7"])]
    assert "Activations have 8 bits at all times." in found.notes
    assert not any("cost" in note for note in found.notes)


def test_columns_go_from_noise_to_picture_and_are_shared_by_both_sides():
    found = drawn(layer("blocks.0.q", weight=(8, 8, 4, 4), act=(8, 6, 6, 6)))
    assert found.sides[0].heads == [
        ("1–0.5", "noise level 1 to 0.5"), ("0.5–0.25", "noise level 0.5 to 0.25"), ("0.25–0", "noise level 0.25 to 0"),
    ]  # fmt: skip
    assert lines(found) == [("0", "qkv", ["4", "8", "8", "6", "6", "8"])]
    assert [square.first for square in found.groups[0].lines[0].squares] == [True, False, False] * 2
    assert [square.kind for square in found.legend] == ["w4", "w6", "w8"]


def test_what_runs_alike_shares_a_line():
    found = drawn(
        layer("b.0.attn.q", weight=(8, 4)), layer("b.0.attn.k", weight=(8, 4)), layer("b.0.fc", "fc1", weight=(8, 4)),
        layer("b.1.attn.q", weight=(8, 4)), layer("b.1.attn.k", weight=(4, 4)), layer("b.1.fc", "fc1", weight=(8, 4)),
        layer("head", "final", weight=(8,)),
    )  # fmt: skip
    assert lines(found) == [
        ("0", "qkv, fc1", ["4", "8"]),
        ("1", "attn.q, fc1", ["4", "8"]),
        ("1", "attn.k", ["4", "4"]),
        ("other", "final", ["8", "8"]),
    ]
    assert found.groups[0].lines[0].layers == "b.0.attn.q, b.0.attn.k, b.0.fc"


def test_lists_of_blocks_are_named_and_never_joined():
    found = drawn(layer("double_blocks.0.q", weight=(8, 4)), layer("single_blocks.1.q", weight=(8, 4)))
    assert [group.title for group in found.groups] == ["double 0", "single 1"]


def test_means_are_over_weights():
    rows = [layer("b.0.q", weight=(8, 4)), layer("b.1.q", weight=(4, 4), shape=[10, 30])]
    assert drawn(*rows).sides[0].means == ["4.0", "5.0"]


@pytest.mark.parametrize(
    ("banks", "said"), [(0, "Time ranges cost no bytes"), (4000, "cost 4.00 kB, 40.0 % of the file")]
)
def test_says_what_time_ranges_cost(banks, said):
    found = drawn(
        layer("b.0.q", weight=(8, 4), act=(8, 6), bank_bytes=banks),
        running_bits_per_weight=6.0, running_bits_per_activation=7.0, bits_per_weight=8.1, file_bytes=10_000,
    )  # fmt: skip
    assert any(said in note for note in found.notes)
    assert "".join(part.text for part in found.summary) == (
        "Weights run at 6.00 bits on average; 8.10 bits a weight are stored, with scales and all else. "
        "Activations run at 7.00 bits on average."
    )


def test_the_whole_page_of_a_mixed_model(mixed_result):
    found = allocation(mixed_result)
    assert [group.title for group in found.groups] == ["0", "1", "2–4", "5"]
    assert sum(len(line.layers.split(", ")) for group in found.groups for line in group.lines) < 36
