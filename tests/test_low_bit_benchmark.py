"""Rate and distortion of weight formats: sources, bounds, what the table says; and results that are not finished."""

import json
import math

import pytest
import torch

from benchmarks import component_tables, components, distortion, low_bit_tables, tq_dit
from benchmarks.quality import row as rows
from dither.numerics import stored_bits


@pytest.mark.parametrize("name", distortion.SOURCES)
def test_sources_have_variance_1_and_their_tails(name):
    values = distortion.source(name, 0).double()
    assert float(values.mean()) == pytest.approx(0, abs=0.01)
    assert float(values.square().mean()) == pytest.approx(1, abs=0.02)
    kurtosis = 3 if name == "Gaussian" else 6
    assert float(values.pow(4).mean()) == pytest.approx(kurtosis, rel=0.08)


@pytest.mark.parametrize("bits", distortion.BITS)
def test_formats_take_the_bits_that_their_place_says(bits):
    for word, fmt in distortion.formats(bits).items():
        true = stored_bits(fmt, distortion.SHAPE) / math.prod(distortion.SHAPE)
        assert bits < true < bits + 0.7, word


def test_a_rotation_is_undone():
    w = distortion.source("rotated", 0)[:4]
    fmt = distortion.formats(4)["integers, a scale a row"]
    turned, plain = (float(distortion.error(w, fmt, turned).mean()) for turned in (True, False))
    assert turned < 0.6 * plain  # outliers are gone, and the rest is back where it was


def test_bounds():
    assert distortion.bound("Gaussian", 2) == 1 / 16
    assert distortion.bound("rotated", 3) == distortion.bound("Laplacian", 3) == pytest.approx(math.e / math.pi / 64)


def test_the_table_has_a_line_a_format_and_one_for_each_bound(monkeypatch):
    found = [
        distortion.row(source, way, bits, bits + 0.1, torch.full((8,), 0.25))
        for bits in (2, 3)
        for way in distortion.formats(bits)
        for source in distortion.SOURCES
    ]
    data = {"rows": found, "shape": [8, 16], "seed": 0, "device": "CPU", "versions": {"torch": "2"}, "command": "c"}
    monkeypatch.setattr(low_bit_tables, "result", lambda name: data)
    lines = [line.split(" | ") for line in low_bit_tables.distortion().splitlines() if line.startswith("| ")]
    assert lines[0][3:] == ["Gaussian", "Laplacian", "rotated |"]
    assert len(lines) == 2 + 2 * (6 + 1)
    assert [line[3:] for line in lines if line[1] == "bound"] == [
        ["0.0625", "0.0541", "0.0541 |"], ["0.0156", "0.0135", "0.0135 |"],
    ]  # fmt: skip


# --- results that are not finished


def test_an_unfinished_result_has_the_rows_that_are_there_and_says_how_many_are_not(monkeypatch, tmp_path):
    study = components.Components(
        "m", "", "none", (tq_dit.LINES[0], tq_dit.LINES[1]), (), ("zoo:digits",), ("w8a8", "w6a6"), 2
    )
    monkeypatch.setattr(components, "measure", lambda *a: {"failed": "not asked for"})
    monkeypatch.setattr(components, "rows", lambda asked, found: [row.switch for row in asked])
    plan = [row for _, row in study.asked(study.models, study.widths)]
    pictures = rows.Pictures(n=4, steps=2, batch_size=components.BATCH)
    done = tmp_path / rows.digest(plan[2], pictures)
    done.mkdir()
    (done / "eval.json").write_text("{}")
    assert [rows.is_measured(row, pictures, tmp_path) for row in plan] == [False, False, True, False]
    output = tmp_path / "result.json"
    study.main(["--measured", "-n", "4", "--threads", "1", "--work", str(tmp_path), "-o", str(output)])
    found = json.loads(output.read_text())
    assert (found["rows"], found["missing"]) == ([plan[2].switch], 3)
    assert found["command"] == "python -m m -n 4 --measured"
    assert component_tables._missing(found) == "3 cells are not measured yet and empty. "
    assert component_tables._missing({"missing": 0}) == component_tables._missing({}) == ""
