"""Rate and distortion of weight formats: sources, bounds, what the table says; and results that are not finished."""

import math

import pytest
import torch

from benchmarks import components, distortion, layer_errors, low_bit, low_bit_tables, vq_sizes
from dither import zoo
from dither.numerics import stored_bits
from dither.quantization import denoiser_of, plan_ahead, record_calls, resolve_recipe
from dither.sources import open_source


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
    assert len(lines) == 2 + 2 * (7 + 1)
    assert [line[3:] for line in lines if line[1] == "bound"] == [
        ["0.0625", "0.0541", "0.0541 |"], ["0.0156", "0.0135", "0.0135 |"],
    ]  # fmt: skip


# --- layer errors and pictures


def test_the_error_of_a_layer_is_that_of_its_output():
    make = torch.Generator().manual_seed(0)
    x, w = torch.randn(50, 6, generator=make) + 0.5, torch.randn(4, 6, generator=make)
    dw, db = torch.randn(4, 6, generator=make).double(), torch.randn(4, generator=make).double()
    moments = layer_errors.Moments()
    for part in x.split(20):
        moments.update(part[None], torch.zeros(1).long())
    want = (x.double() @ dw.T + db).square().sum(1).mean()
    assert moments.error(dw, db) == pytest.approx(float(want))
    z = x.double() @ w.double().T
    assert moments.spread(w.double()) == pytest.approx(float((z - z.mean(0)).square().sum(1).mean()))


def test_errors_of_methods_on_a_model_that_ships():
    line = components.Line("k-means", "vq4dit", ("codebooks=off",), ("w2",))
    pipe = open_source("zoo:digits").pipeline
    moments = layer_errors.watched(denoiser_of(pipe), record_calls(pipe, seed=1)[:4])
    found = layer_errors.row("zoo:digits", line, "w2", 0, moments)
    assert found["layers"] == 21
    assert 0.01 < found["mean"] < 0.5


def test_rotated_outputs_are_turned_back():
    """Eight bits that nothing is lost by: the same weight comes back."""
    pipe = open_source("zoo:digits").pipeline
    moments = layer_errors.watched(denoiser_of(pipe), record_calls(pipe, seed=1)[:4])
    line = components.Line("", "dither", ("gptq=off", "tune=off"), ("w8",))
    found = layer_errors.both_sides("zoo:digits", line, "w8", 0, moments)
    assert (found["layers"], found["line"]) == (21, layer_errors.BOTH)
    assert 0 < found["mean"] < 1e-3
    assert {layer_errors.BESIDE} <= set(layer_errors.CHOSEN)


def test_every_line_of_the_table_is_a_recipe_of_its_width():
    seen = set()
    for bits in low_bit.WIDTHS:
        for line, row in low_bit.STUDY.asked(("zoo:fashion",), (bits,)):
            recipe = resolve_recipe(row.recipe, row.bits, row.settings)
            specs = plan_ahead(zoo.load("fashion"), recipe).specs
            codes = {getattr(s.weight, "bits", 0) / getattr(s.weight, "dim", 1) for s in specs.values()}
            assert codes == {int(bits[1:])}, line
            assert len(specs) == 42  # modulation too
            seen.add((line.name, bits))
    names = {line.name for line in low_bit.LINES}
    assert seen == {(name, bits) for name in names for bits in low_bit.WIDTHS}
    assert {name for pair in low_bit.PAIRS for name in pair} <= names
    assert set(layer_errors.CHOSEN) <= names


def test_the_table_of_layer_errors(monkeypatch):
    rows_ = [{"line": n, "model": "zoo:m", "bits": b, "mean": 0.5, "layers": 3} for n, b in (("a", "w2"), ("b", "w3"))]
    drawn = {"calls": 1, "samples": 2, "steps": 3}
    data = {"rows": rows_, "calibration": drawn, "seed": 0, "device": "d", "versions": {"torch": "2"}, "command": "c"}
    monkeypatch.setattr(low_bit_tables, "result", lambda name: data)
    lines = [line.split(" | ") for line in low_bit_tables.layer_errors().splitlines() if line.startswith("| ")]
    assert [line[1:] for line in lines[2:]] == [["0.5000", " |"], ["", "0.5000 |"]]


def test_sizes_are_those_that_the_paper_tells():
    """2553.35 and 162.08 MB, 159.47 of indices and 0.77 of codebooks."""
    found = {row["format"]: row for row in vq_sizes.rows()}
    paper = found["VQ4DiT, 2 bits"]
    assert (paper["full_mib"], paper["as_counted_mib"], paper["as_counted_ratio"]) == (2553.35, 162.08, 15.75)
    assert paper["parts_mib"] == {"codes": 159.47, "codebook": 0.77}
    assert found["VQ4DiT, 3 bits"]["as_counted_mib"] == 241.14
    assert all(row["checkpoint_mib"]["float16, embedders once"] > row["as_counted_mib"] for row in found.values())
    assert "162.08 (15.75 times less)" in low_bit_tables.vq_sizes()
