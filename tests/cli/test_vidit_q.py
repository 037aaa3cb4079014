"""ViDiT-Q on the command line: what cannot be asked for is named in one sentence, and an interrupted search goes on."""

import json
import signal
import sys
from pathlib import Path

import jobs
import pytest

from dither.store import FolderStore

QUICK = "--samples 10 --steps 2 --calls 2"
SEARCH = "--set mixed.samples=2 --set mixed.steps=4 --set mixed.content=zoo:digits --set mixed.visual=zoo:digits"
MP = f"--recipe vidit-q-mp --bits w4a8 {QUICK} {SEARCH}"


def nothing_written(folder: Path) -> bool:
    return not [p.name for p in folder.iterdir() if p.name.startswith(("out", ".out"))]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        # alpha, in both conventions
        ("--recipe vidit-q --set smooth.vidit_alpha=1.5", ["smooth.vidit_alpha 1.5", "[0, 1]"]),
        ("--recipe vidit-q --set smooth.vidit_alpha=-0.01", ["smooth.vidit_alpha -0.01", "[0, 1]"]),
        ("--recipe vidit-q --set smooth.vidit_alpha=NaN", ["smooth.vidit_alpha nan"]),
        ("--recipe smoothquant --set smooth.alpha=2", ["smooth.alpha 2", "[0, 1]"]),
        ("--recipe vidit-q --set smooth.alpha=0.5", ["smooth.alpha 0.5 and smooth.vidit_alpha 0.5665", "one of the two"]),
        ("--recipe vidit-q --set smooth.search=[0.5,1.1]", ["smooth.search 1.1", "[0, 1]"]),
        ("--recipe vidit-q-timed --set timed-smooth.vidit_alpha=[0.5,3]", ["timed-smooth.vidit_alpha 3", "[0, 1]"]),
        ("--recipe vidit-q-timed --set timed-smooth.alpha=[0.5]", ["timed-smooth.alpha", "one of the two"]),
        ("--recipe vidit-q-timed --set timed-smooth.edges=[0.5,0.5]", ["timed-smooth.edges", "ascending"]),
        # rotations
        ("--recipe quarot --set rotate.block=5", ["rotate.block 5"]),
        ("--recipe quarot --set rotate.block=32", ["transformer_blocks.0.attn1.to_q", "32", "16"]),
        ("--recipe quarot --set rotate.layers=(", ["rotate.layers '('"]),
        ("--recipe quarot --set rotate.layers=nowhere", ["rotate.layers 'nowhere'"]),
        # budgets: what is named can be met
        ("--recipe vidit-q-mp --set mixed.weight=3", ["mixed.weight 3", "smallest", "4 bits"]),
        ("--recipe vidit-q-mp-stored --set mixed.weight=3.999", ["mixed.weight 3.999", "smallest", "4 bits"]),
        ("--recipe vidit-q-mp --bits w4a4 --set mixed.act=1", ["mixed.act 1", "smallest", "4 bits"]),
        ("--recipe vidit-q-ilp --set integer-program.weight=2", ["integer-program.weight 2", "smallest", "4 bits"]),
        ("--recipe vidit-q-mp --set mixed.weight_widths=[8,4]", ["mixed.weight_widths [8, 4]", "ascend"]),
        ("--recipe vidit-q-mp --set mixed.ranges=0", ["mixed.ranges 0"]),
        ("--recipe vidit-q-mp --set mixed.samples=0", ["mixed.samples 0"]),
        # judges
        ("--recipe vidit-q-mp", ["mixed.content", "zoo:"]),
        ("--recipe vidit-q-mp --set mixed.content=magic --set mixed.visual=zoo:digits", ["magic", "clip"]),
        ("--recipe vidit-q-mp --set mixed.temporal=clip", ["mixed.temporal 'clip'"]),
        # widening by hand
        ("--recipe vidit-q-released-mp --set widen.blocks=[2]", ["widen.blocks 2", "2 blocks, 0 to 1"]),
        ("--recipe vidit-q-released-mp --set widen.blocks=[-3]", ["widen.blocks -3"]),
        ("--recipe vidit-q-shipped-mp --set widen.at=[4]", ["widen.at 4", "4 ranges"]),
        ("--recipe vidit-q-shipped-mp --set widen.layers=nowhere", ["widen.layers 'nowhere'"]),
        ("--recipe vidit-q-shipped-mp --set widen.layers=(", ["widen.layers '('", "regular expression"]),
        ("--recipe vidit-q-shipped-mp --set widen.weight=12", ["widen.weight 12"]),
        # switches
        ("--recipe vidit-q --set timed-smooth=off", ["'vidit-q' has no stage 'timed-smooth'"]),
        ("--recipe vidit-q --set rotate=off --set rotate.block=8", ["rotate.block=8", "off"]),
        ("--recipe rtn-clip --set share=off --set assign=off --set clip=off --set rtn=off --set ranges=off",
         ["ranges=off", "nothing is"]),
        ("--recipe rtn --set assign=off", ["rtn", "full precision"]),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for(dither, refused, model, tmp_path, options, names):
    refused(dither(f"quantize {model} -o out {options} {QUICK}"), *names)
    assert nothing_written(tmp_path)


def test_a_width_without_a_hadamard_matrix(dither, refused, tmp_path):
    jobs.pipeline(attention_head_dim=46).save_pretrained(tmp_path / "odd")
    refused(dither(f"quantize odd -o out --recipe vidit-q {QUICK}"), "transformer_blocks.0.attn1.to_q", "92")
    assert nothing_written(tmp_path)


def test_the_smallest_budget_that_is_named_can_be_met(dither, refused, model):
    """Also where modulation layers, which never get fewer bits than they have, lift it."""
    options = f"--recipe vidit-q-mp-stored --bits w2a8 {QUICK} {SEARCH}"
    sentence = refused(
        dither(f"quantize {model} -o out {options} --set mixed.weight=2.1"), "mixed.weight 2.1", "smallest"
    )
    least = float(sentence.split(" is ")[-1].split(" bits")[0])
    assert 2.1 < least < 4
    result = dither(f"quantize {model} -o out {options} --set mixed.weight={least} --json out.json")
    assert result.exit_code == 0, result.stderr
    size = json.loads(Path("out.json").read_text())["size"]
    assert abs(size["running_bits_per_weight"] - least) < 0.002


def test_a_metric_whose_package_is_missing(dither, refused, model, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    options = f"--recipe vidit-q-mp {QUICK} --set mixed.content=zoo:digits --set mixed.visual=inception"
    refused(dither(f"quantize {model} -o out {options}"), "torch-fidelity", "pip install 'dither[fid]'")
    assert nothing_written(tmp_path)


# --- an interrupted search


@pytest.fixture
def interrupt(monkeypatch):
    """A real SIGINT when the run has stored so many things, of which it then tells the names."""
    plain, names = FolderStore.put, list[str]()

    def after(count: int) -> list[str]:
        names.clear()

        def put(self, name, tensors):
            plain(self, name, tensors)
            names.append(name)
            if len(names) == count:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(FolderStore, "put", put)
        return names

    return after


def test_an_interrupted_search_goes_on_and_measures_nothing_twice(dither, refused, model, tmp_path, interrupt, stored):
    made = interrupt(0)
    assert dither(f"quantize {model} -o whole {MP}").exit_code == 0
    everything = sorted(made)
    measured = [name for name in everything if name.startswith("sensitivity.")]
    assert len(measured) == 2 * 3 * 4 * 2  # blocks, parts, quarters, widths below the widest
    interrupt(5)
    refused(dither(f"quantize {model} -o out {MP}"), "interrupted", "5 measurements", "--resume")
    first = list(made)
    refused(dither(f"quantize {model} -o out {MP}"), "out.partial", "--resume")
    refused(dither(f"quantize {model} -o out {MP} --resume --set mixed.weight=5"), "out.partial", "another")
    interrupt(0)
    result = dither(f"quantize {model} -o out {MP} --resume")
    assert result.exit_code == 0, result.stderr
    assert sorted([*first, *made]) == everything
    assert stored(tmp_path / "out") == stored(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def test_a_damaged_measurement_is_named(dither, refused, model, tmp_path, interrupt):
    interrupt(2)
    refused(dither(f"quantize {model} -o out {MP}"), "2 measurements")
    kept = sorted((tmp_path / "out.partial").glob("sensitivity.*"))[0]
    kept.write_bytes(kept.read_bytes()[:9])
    refused(dither(f"quantize {model} -o out {MP} --resume"), kept.name)


def test_what_was_chosen_is_told(dither, model):
    result = dither(f"quantize {model} -o out {MP} --json out.json")
    assert result.exit_code == 0, result.stderr
    assert "'mixed' gives each layer its widths after drawing pictures" in result.stdout
    told = json.loads(Path("out.json").read_text())
    assert told["size"]["running_bits_per_weight"] <= 4.75 < told["size"]["bits_per_weight"]
    inspected = json.loads(dither("inspect out --json").stdout)
    assert inspected["running_bits_per_weight"] == told["size"]["running_bits_per_weight"]
    assert inspected["notes"] == told["notes"]
    widths = {name: note["widths"]["weight"] for name, note in told["notes"].items() if "widths" in note}
    assert {len(bits) for bits in widths.values()} == {4}
    assert {bit for bits in widths.values() for bit in bits} <= {4, 6, 8}


def test_a_recipe_is_told_in_words_beside_its_json(dither):
    result = dither("recipes vidit-q-mp")
    assert json.loads(result.stdout)["name"] == "vidit-q-mp"
    assert "each part judged by its own metric" in result.stderr


@pytest.mark.parametrize("recipe", [f"{MP} --set mixed.nested=false", f"--recipe vidit-q-timed --bits w4a8 {QUICK}"])
def test_banks_are_saved_with_their_scales_and_rotations(dither, model, recipe):
    result = dither(f"quantize {model} -o out {recipe} --json out.json")
    assert result.exit_code == 0, result.output
    rows = json.loads(Path("out.json").read_text())["layers"]["rows"]
    assert sum(row["bank_bytes"] for row in rows) > 0
    assert json.loads(dither("inspect out --json").stdout)["layers"]["rows"] == rows
