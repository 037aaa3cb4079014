"""Results of components: rows that were measured elsewhere stay, and are compared picture by picture with new ones."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import component_tables, components, tq_dit
from benchmarks.kept import Kept, of_pictures, pictures_of
from benchmarks.quality import row as rows
from dither.quantization import Calibration

from .test_benchmarks import FOUND

FIRST, SECOND = (line.name for line in tq_dit.LINES[:2])
STUDY = components.Components(
    "m", "", "none", tq_dit.LINES[:2], ((SECOND, FIRST),), ("zoo:digits",), ("w8a8", "w6a6"), 2
)  # fmt: skip
PICTURES = rows.Pictures(n=4, steps=2, batch_size=components.BATCH)


def measured(folder, asked, psnr):
    """As if a row had been measured in a folder."""
    mean = sum(psnr) / len(psnr)
    found = {**FOUND, "psnr_db": {"mean": mean, "ci95": [mean - 1, mean + 1], "worst": min(psnr), "per_image": psnr}}
    made = folder / rows.digest(asked, PICTURES)
    made.mkdir(parents=True)
    (made / "eval.json").write_text(json.dumps(found))


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes the result from what a folder holds, as on a machine that measures nothing."""
    monkeypatch.setattr(components, "measure", nothing_new(components.measure))

    def write(folder, *words):
        output = tmp_path / "result.json"
        given = ["-n", "4", "--threads", "1", "--work", str(tmp_path / folder), "-o", str(output), *words]
        status = STUDY.main(given)
        return status, json.loads(output.read_text())

    return write


def nothing_new(measure):
    return lambda asked, pictures, work: measure(asked, pictures, work, evaluate=None)


@pytest.fixture
def plan():
    return [asked for _, asked in STUDY.asked(STUDY.models, STUDY.widths)]


def test_an_unfinished_result_has_the_rows_that_are_there_and_says_how_many_are_not(tmp_path, written, plan):
    measured(tmp_path / "a", plan[2], [30.0, 31, 32, 33])
    assert [rows.is_measured(row, PICTURES, tmp_path / "a") for row in plan] == [False, False, True, False]
    _, found = written("a", "--measured")
    assert [(row["bits"], row.get("switch")) for row in found["rows"]] == [("", ""), ("w6a6", FIRST)]
    assert found["missing"] == 3
    assert found["command"] == "python -m m -n 4 --measured"
    assert component_tables._missing(found) == "3 cells are not measured yet and empty. "
    assert component_tables._missing({"missing": 0}) == component_tables._missing({}) == ""


def test_rows_of_another_machine_stay_and_are_compared_with_new_ones(tmp_path, written, plan):
    measured(tmp_path / "a", plan[2], [30.0, 31, 32, 33])
    _, first = written("a", "--measured")
    measured(tmp_path / "b", plan[3], [31.0, 33, 33, 35])
    _, both = written("b", "--measured")
    assert both["rows"][:2] == first["rows"]
    assert [row["switch"] for row in both["rows"][1:]] == [FIRST, SECOND]
    (difference,) = both["differences_db"]
    assert (difference["of"], difference["minus"], difference["mean"]) == (SECOND, FIRST, 1.5)
    assert difference["ci95"][0] < 1.5 < difference["ci95"][1]
    _, again = written("c", "--measured")
    assert (again["rows"], again["differences_db"]) == (both["rows"], both["differences_db"])


def test_a_part_measures_what_the_result_does_not_hold(tmp_path, written, plan, monkeypatch):
    measured(tmp_path / "a", plan[2], [30.0, 31, 32, 33])
    _, before = written("a", "--measured")
    asked = []
    monkeypatch.setattr(components, "measure", lambda row, *_: asked.append(row) or {"failed": "not here"})
    for part in ("1/2", "2/2"):
        assert written("b", "--part", part) == (1, before)
    assert asked == [plan[0], plan[1], plan[3]]


def test_rows_that_hold_no_pictures_keep_the_difference_that_was_told(tmp_path, written, plan):
    for asked in plan[2:]:
        measured(tmp_path / "a", asked, [30.0, 31, 32, 33])
    _, found = written("a", "--measured")
    for row in found["rows"]:
        for name in ("psnr_hundredths_db", "digest", "measured"):
            row.pop(name, None)
    found["differences_db"][0]["mean"] = 0.25
    (tmp_path / "result.json").write_text(json.dumps(found))
    _, again = written("b", "--measured")
    assert (again["rows"], again["differences_db"]) == (found["rows"], found["differences_db"])


@pytest.mark.parametrize("change", [{"n": 5}, {"seed": 1}, {"steps": 3}, {"calibration": {"calls": 1}}])
def test_nothing_is_kept_of_other_pictures(tmp_path, written, plan, change):
    measured(tmp_path / "a", plan[2], [30.0, 31, 32, 33])
    _, found = written("a", "--measured")
    (tmp_path / "result.json").write_text(json.dumps({**found, **change}))
    assert written("b", "--measured")[1]["rows"] == []


def test_nothing_is_kept_of_a_recipe_that_has_changed(tmp_path, written, plan):
    measured(tmp_path / "a", plan[2], [30.0, 31, 32, 33])
    _, found = written("a", "--measured")
    found["rows"][1]["digest"] = "another"
    (tmp_path / "result.json").write_text(json.dumps(found))
    assert written("b", "--measured")[1]["rows"] == []


def test_a_failed_row_is_in_the_result_has_no_difference_and_is_not_kept(tmp_path, written, plan):
    measured(tmp_path / "a", plan[2], [30.0, 31, 32, 33])
    status, found = written("a")  # the others are not there, and nothing measures them
    assert status == 1
    assert [("failed" in row) for row in found["rows"][1:]] == [True, True, False, True]
    assert found["differences_db"] == []
    assert [row["switch"] for row in written("b", "--measured")[1]["rows"][1:]] == [FIRST]


def test_pictures_are_held_to_a_hundredth_of_a_db():
    psnr = np.linspace(-3, 60, 1000)
    back = pictures_of({"psnr_hundredths_db": of_pictures(psnr)})
    assert np.abs(back - psnr).max() <= 0.005 + 1e-9
    assert pictures_of({}) is None


def test_a_result_that_is_not_there_holds_nothing(tmp_path, plan):
    header = {"n": 4, "calibration": Calibration().samples}
    assert Kept.read(tmp_path / "none.json", header).row(replace(plan[0], bits="w2"), "") is None
