"""The table of ViDiT-Q's components: which rows it asks for, how parts share them, and what its cells say."""

import pytest

from benchmarks import component_tables, vidit_q, vidit_q_tables
from benchmarks.components import differences
from benchmarks.kept import Kept, of_pictures
from benchmarks.quality.row import Pictures, digest
from dither.quantization import resolve_recipe


def test_every_line_is_a_recipe_that_exists_and_lines_differ():
    plan = list(vidit_q.STUDY.asked(["zoo:fashion"], vidit_q.WIDTHS))
    for _, row in plan:
        assert resolve_recipe(row.recipe, row.bits, row.settings).stages
    assert len({digest(row, Pictures()) for _, row in plan}) == len(plan)
    assert len({(line.name, row.bits) for line, row in plan}) == len(plan)


def test_every_difference_is_between_lines_that_are_there():
    names = {line.name for line in vidit_q.LINES}
    assert {name for pair in vidit_q.PAIRS for name in pair} <= names


def test_models_take_turns_so_that_two_parts_are_two_models():
    plan = [row.model for _, row in vidit_q.STUDY.asked(vidit_q.MODELS, ["w4a8"])]
    assert set(plan[::2]) == {vidit_q.MODELS[0]}
    assert set(plan[1::2]) == {vidit_q.MODELS[1]}


def test_a_difference_is_the_first_minus_the_second():
    values = {"static": [20.0, 21, 22, 25], "+ scaling": [30.0, 31, 32, 33], "+ both": [32.0, 33.5, 33, 38]}
    rows = [{**row(name, 0, 1), "psnr_hundredths_db": of_pictures(psnr)} for name, psnr in values.items()]
    made = list(differences(vidit_q.PAIRS, rows, Kept({}, {}, {})))
    assert [(d["of"], d["minus"]) for d in made] == [("+ both", "static"), ("+ both", "+ scaling")]
    assert made[0]["mean"] == pytest.approx(12.125)
    assert made[0]["ci95"][0] < 12.125 < made[0]["ci95"][1]


def test_a_failed_line_has_no_difference():
    rows = [{**row("static", 0, 1), "failed": "why"}, row("+ both", 0, 1)]
    assert not list(differences(vidit_q.PAIRS, rows, Kept({}, {}, {})))


@pytest.mark.parametrize("words", [[], ["-n", "64", "--bits", "w4a8"], ["--models", "zoo:digits", "--steps", "5"]])
def test_the_command_repeats_the_result(words):
    given = vidit_q.STUDY.parsed(words)
    again = vidit_q.STUDY.command(given).split()[3:]
    assert vidit_q.STUDY.command(vidit_q.STUDY.parsed(again)) == vidit_q.STUDY.command(given)


def row(switch, low, high, bits=4.2, running=None):
    return {
        "model": "zoo:fashion",
        "recipe": "vidit-q",
        "bits": "w4a8",
        "switch": switch,
        "settings": [],
        "psnr_db": {"mean": (low + high) / 2, "ci95": [low, high]},
        "fd": {"to_full_precision": 0.25, "to_full_precision_se": 0.01},
        "size": {"bits_per_weight": bits, "running_bits_per_weight": running, "running_bits_per_activation": None},
    }


def result_of(*rows):
    full = {
        "model": "zoo:fashion",
        "bits": "",
        "psnr_db": {"other_batch_size": 60.0, "other_seeds": 10.4},
        "fd": {"noise_floor": 3.7},
    }
    return {
        "n": 4,
        "steps": 10,
        "guidance": 1.5,
        "device": "CPU",
        "versions": {"torch": "2"},
        "command": "python",
        "rows": [full, *rows],
        "differences_db": [
            {"model": "zoo:fashion", "bits": "w4a8", "of": "a", "minus": "b", "mean": 1.0, "ci95": [0.5, 1.5]},
            {"model": "zoo:fashion", "bits": "w4a4", "of": "a", "minus": "b", "mean": -0.1, "ci95": [-0.5, 0.3]},
        ],
    }


def test_only_what_stands_out_is_bold_and_failures_stay(monkeypatch):
    failed = {"model": "zoo:fashion", "bits": "w4a8", "switch": "static", "failed": "BadValue: why"}
    data = result_of(row("+ both", 34, 36), row("+ scaling", 30, 32), failed)
    monkeypatch.setattr(component_tables, "result", lambda name: data)
    text = component_tables.components("any")
    assert "| + both | **35.0 [34.0, 36.0]**; 0.25 ± 0.01; 4.20 |" in text
    assert "| + scaling | 31.0 [30.0, 32.0]; " in text
    assert "| static | failed: BadValue: why |" in text
    assert "10.4 dB with other seeds" in text


def test_a_difference_is_bold_where_its_interval_excludes_zero(monkeypatch):
    monkeypatch.setattr(component_tables, "result", lambda name: result_of())
    assert "| a − b | **+1.00 [+0.50, +1.50]** | -0.10 [-0.50, +0.30] |" in component_tables.differences("any")


def test_mixed_rows_stand_beside_the_uniform_one_with_both_counts(monkeypatch):
    data = result_of(
        row("+ both", 34, 36, running=4.0), row("MP paper", 37, 38, bits=8.3, running=4.75), row("rtn", 1, 2)
    )
    monkeypatch.setattr(vidit_q_tables, "result", lambda name: data)
    lines = vidit_q_tables.mixed().splitlines()
    assert lines[2].startswith("| `zoo:fashion` | W4A8 | uniform | 4.00 |  | 4.20 | 35.0")
    assert lines[3].startswith("| `zoo:fashion` | W4A8 | paper | 4.75 |  | 8.30 | 37.5")
    assert not lines[4]
