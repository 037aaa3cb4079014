"""What the benchmark on GPUs does without one: it refuses, keeps to its time, and reports ratios that say what is noise."""

import copy
import json

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import blocks, denoisers, layers, tiles
from benchmarks.gpu.clock import Budget, Time, of
from benchmarks.gpu.report import AGAIN, BASE, table, with_ratios
from dither.gpu import machine
from dither.kernels import named
from dither.spec import Act, Float8, LinearSpec


def test_without_a_gpu_it_is_one_sentence_and_status_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["-o", str(tmp_path / "gpu.json")]) == 2
    told = capsys.readouterr()
    assert told.err == "error: there is no CUDA device here, and speeds are measured on one\n"
    assert told.out == ""
    assert not list(tmp_path.iterdir())


def test_without_triton_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "triton_version", lambda: None)
    machine._why_not.cache_clear()
    assert command.main([]) == 2
    assert "pip install 'dither[gpu]'" in capsys.readouterr().err
    machine._why_not.cache_clear()


@pytest.mark.parametrize("words", [["--budget", "541"], ["--budget", "0"], ["--parts", "all"]])
def test_bad_options_are_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.parsed(words)
    assert words[0] in capsys.readouterr().err


def test_nothing_is_measured_that_time_is_not_left_for(capsys):
    cells = denoisers.measured(Budget(0.0))
    assert {(c["case"], c["variant"]) for c in cells} == {
        (c.name, v) for c in denoisers.CASES for v in denoisers.VARIANTS
    }
    assert {c["found"] for c in cells} == {"n/a (no time was left)"}
    assert len(capsys.readouterr().out.splitlines()) == len(cells)
    assert {c["tile"] for c in tiles.tuned(Budget(100.0), reserve=200.0)} == {"n/a (no time was left)"}
    assert {c["times"] for c in layers.measured(Budget(100.0), reserve=200.0)} == {"n/a (no time was left)"}


def test_the_base_is_measured_first_and_last():
    names = list(denoisers.VARIANTS)
    assert names[:2] == ["bfloat16 eager", BASE]
    assert names[-1] == AGAIN


def test_float8_is_measured_beside_integers_and_peers():
    assert {"ours w8a8", "ours fp8", "torchao float8 by rows"} <= set(denoisers.VARIANTS)


def in_float8(dtype):
    """A small block, and the same in float8; its modulation by torch, as the kernel of GPUs needs Triton."""
    whole = blocks.denoiser(blocks.Size(64, 2, 1), "cpu", dtype).blocks[0]
    made = blocks.pack(copy.deepcopy(whole), blocks.Formats(None))
    made.ada.kernel = named("dequantize")
    assert {made.get_submodule(name).kernel.name for name in blocks.PARTS} == {"scaled_mm"}
    return whole, made


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, denoisers.MOST_ERROR_OF_FLOAT8)])
@torch.no_grad()
def test_blocks_of_float8_are_near_what_they_were_and_are_their_simulation(dtype, most):
    whole, made = in_float8(dtype)
    x, c = torch.randn(2, 6, 64).to(dtype), torch.randn(2, 64).to(dtype)
    got = made(x, c)
    assert 0 < layers.distance(got, whole(x, c)) < 0.1
    assert layers.distance(got - x, blocks.simulated(made)(x, c) - x) < most


def test_a_linear_of_float8_is_held_against_float64():
    torch.manual_seed(0)
    made = blocks.packed(torch.nn.Linear(64, 48, dtype=torch.bfloat16), LinearSpec(Float8(), Act(Float8())))
    x = torch.randn(5, 64).bfloat16()
    assert layers.distance(made(x), layers.expected(made, x)) < layers.MOST_ERROR


def test_what_fails_says_why_in_one_line():
    assert layers.attempt(lambda: 3) == 3

    def fail():
        raise ModuleNotFoundError("No module named 'torchao'\nmore")

    assert layers.attempt(fail) == "n/a (ModuleNotFoundError: No module named 'torchao')"


def test_times_are_medians_and_quartiles():
    assert of([1.0, 2.0, 3.0, 4.0, 50.0]) == Time(3.0, 2.0)
    assert layers.rates({"bfloat16": Time(2.0, 0.1), "mine": Time(1.0, 0.1), "peer": "n/a (x)"}) == {
        "bfloat16": {"ms": 2.0, "iqr": 0.1, "ratio": 1.0},
        "mine": {"ms": 1.0, "iqr": 0.1, "ratio": 2.0},
        "peer": "n/a (x)",
    }


def cell(variant, ms, iqr=0.0, size=100, case="a case"):
    time = {"ms": ms, "iqr": iqr}
    found = {"graph": time, "no graph": {"ms": 2 * ms, "iqr": iqr}, "weight_bytes": size, "peak_bytes": size}
    return {"case": case, "variant": variant, "found": found}


def test_ratios_are_to_the_base_of_their_case():
    cells = [
        cell(BASE, 2.0),
        cell("mine", 1.0, size=50),
        cell("near", 1.95),
        cell("noisy", 1.0, iqr=0.9),
        cell(AGAIN, 2.1),
    ]
    cells += [cell(BASE, 8.0, case="other"), cell("mine", 4.0, case="other")]
    rows = with_ratios([*cells, {"case": "other", "variant": "near", "found": "n/a (x)"}])
    told = {(r["case"], r["variant"]): r for r in rows}
    mine = told["a case", "mine"]
    assert (mine["ratio graph"], mine["ratio no graph"], mine["smaller"], mine["same"]) == (2.0, 2.0, 2.0, False)
    assert told["a case", "near"]["same"]  # the base itself moved by as much
    assert not told["a case", "noisy"]["same"]
    assert told["other", "mine"]["ratio graph"] == 2.0
    assert "ratio graph" not in told["other", "near"]
    text = table(json.loads(json.dumps(rows)))
    assert "| mine | 2.00 | 2.00 |" in text
    assert "| near | 1.03 (no difference) | n/a |" in text
    assert "near: n/a (x)" in text
    assert "ms" not in text


def test_without_a_base_there_are_no_ratios():
    (row,) = with_ratios([cell("mine", 1.0)])
    assert "ratio graph" not in row
