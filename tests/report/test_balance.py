"""What stages noted of channels: the order of time, the worst first, and words for layers that were left alone."""

import pytest

from dither.report.balance import SPARK_HEIGHT, balance


def found(**notes):
    rows = [{"name": f"b.{i}.{leaf}", "kind": leaf} for i in range(2) for leaf in ("q", "k")]
    return balance(
        {"layers": {"rows": rows}, "notes": {name.replace("_", "."): facts for name, facts in notes.items()}}
    )


def turned(before, after, rotated=True):
    return {"incoherence": before, "incoherence_rotated": after, "rotated": rotated}


def test_nothing_noted_nothing_shown():
    assert balance({}) is None
    assert found(b_0_q={"widths": {"weight": [4]}}) is None


def test_readers_of_one_input_share_a_line_and_the_worst_come_first():
    shown = found(b_0_q=turned([3.0], [2.0]), b_0_k=turned([3.0], [2.0]), b_1_q=turned([4.0, 20.0], [2.5, 3.0], False))
    assert [(line.place, line.name, line.worst, line.left) for line in shown.lines] == [
        ("1", "q", "20.0 → 3.0", True),
        ("0", "q, k", "3.0 → 2.0", False),
    ]
    assert shown.summary == [
        "Where it was measured, rotation takes the incoherence of the worst quarter from 20.0 to 3.0 at most, and from 11.5"
        " to 2.5 in the median; 2 of 3 layers were rotated."
    ]


def test_charts_go_from_noise_to_picture_on_one_scale():
    first, second = found(b_0_q=turned([1.0, 10.0], [1.0, 1.0]), b_1_q=turned([1.0, 1.0], [1.0, 1.0])).lines
    (x0, high), (x1, low) = first.sparks[0].dots
    assert x0 < x1
    assert high < low, "the top is the most, and the noisiest comes first"
    assert {y for _, y in second.sparks[0].dots} == {low}
    assert 0 <= high < low <= SPARK_HEIGHT
    assert first.said == "before rotation: 10, 1; after: 1, 1"


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({"smooth_alpha": 0.35}, "0.35"),
        ({"smooth_alpha": None}, "none"),
        ({"timed_smooth_alpha": [0.5, None, 0.25]}, "0.25 · none · 0.5"),
    ],
)
def test_alphas(facts, shown):
    said = found(b_0_q=facts)
    assert said.lines[0].alpha[0] == shown
    assert (said.measured, said.turned, said.scaled) == (False, False, True)


def test_layers_left_alone_are_counted_with_the_reason():
    why = "not scaled: adaLN does not make its input"
    shown = found(b_0_q={"smooth_alpha": 0.5}, b_0_k={"smooth": why}, b_1_k={"smooth": why})
    assert shown.reasons == [f"2 layers {why}."]
