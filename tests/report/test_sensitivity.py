"""Heat maps of measured losses: parts, the order of time, units and shades."""

import pytest

from dither.report.sensitivity import sensitivity


def result(**losses):
    """One layer a block with these values of `w4` by name of the loss, from low to high noise."""
    rows = [{"name": f"b.{i}.q", "kind": "qkv"} for i in range(2)]
    notes = {
        f"b.{i}.q": {"sensitivity": {"role": "visual", "w4": {k: v[i] for k, v in losses.items()}}} for i in range(2)
    }
    return {"layers": {"rows": rows}, "notes": notes | {"mixed": {"judges": {"visual": "the zoo's features"}}}}


def test_nothing_noted_nothing_shown():
    assert sensitivity({}) is None
    assert sensitivity({"notes": {"b.0.q": {"rotated": True, "sensitivity": {"role": "visual"}}}}) is None


def test_values_go_from_noise_to_picture_in_a_common_unit():
    found = sensitivity(result(mse=([2e-5, 1e-6], [4e-4, 1.2e-3]), visual=([0.5, 0.25], [2.0, 4.0])))
    assert [table.title for table in found.tables] == ["w4 MSE", "w4 visual"]
    first, second = found.tables
    assert first.heads == ["1–0.5", "0.5–0"]
    assert [(place, lines[0].name) for place, lines in first.groups] == [("0", "qkv"), ("1", "qkv")]
    assert [lines[0].squares for _, lines in first.groups] == [
        [("<0.01", "h0"), ("0.02", "h3")],
        [("1.2", "h6"), ("0.4", "h5")],
    ]
    assert first.about == "Weights at 4 bits; mean squared error of the pictures, in units of 10⁻³."
    assert second.about == "Weights at 4 bits; visual, judged by the zoo's features."


@pytest.mark.parametrize("values", [([0.0, 0.0], [0.0, 0.0]), ([1.0, 1.0], [1.0, 1.0]), ([-1.0, None], [3.0])])
def test_flat_negative_and_missing_values_have_shades(values):
    squares = [square for _, lines in sensitivity(result(mse=values)).tables[0].groups for square in lines[0].squares]
    assert {kind for _, kind in squares} <= {"h0", "none", "h6"}


def test_layers_of_a_part_share_a_line(mixed_result):
    found = sensitivity(mixed_result)
    assert [table.title for table in found.tables] == ["w4 MSE", "w4 visual", "a4 MSE", "a4 visual"]
    assert [line.name for _, lines in found.tables[0].groups for line in lines] == ["qkv, attn_out", "fc1, fc2"] * 6
