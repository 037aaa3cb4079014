"""Q-DiT and DiTAS on the command line: one command searches and quantizes, goes on after an interruption, or says why not."""

import json
import re
import signal
from pathlib import Path

import pytest

from dither.store import FolderStore

SHORT = "--samples 10 --steps 4 --calls 4"
FEW = "--set evolve.population=4 --set evolve.keep=2 --set evolve.rounds=1 --set evolve.samples=2 --set evolve.steps=2"


def groups_of(size: int) -> str:
    return " ".join(f"--set assign.{what}.group={size}" for what in ("weight", "act.grid", "adaln"))


TINY = f"--recipe q-dit --bits w4a8 {SHORT} {FEW} {groups_of(8)} --set assign.fit=false --set evolve.sizes=[4,8,16]"
DIGITS = f"--recipe q-dit --bits w4a8 {SHORT} {FEW} {groups_of(64)}"
LAYER = "transformer_blocks.0.attn1.to_q"


def nothing_written(folder: Path) -> bool:
    return not [p.name for p in folder.iterdir() if p.name.startswith(("out", ".out"))]


def test_one_command_searches_quantizes_and_shows_the_groups(dither, tmp_path):
    result = dither(f"quantize zoo:digits -o out {DIGITS} --json out.json")
    assert result.exit_code == 0, result.stderr
    assert "assign -> attention -> evolve -> gptq -> rtn -> ranges" in result.stdout
    assert "'evolve' searches a group size for each layer" in result.stdout
    assert "rounding by GPTQ: 21 of 21" in result.stderr
    data = json.loads((tmp_path / "out/groups.json").read_text())
    assert (data["kind"], data["stage"]) == ("dither-groups", "evolve")
    assert len(set(data["groups"].values())) > 1
    assert all(data["costs"][what] <= data["limits"][what] for what in ("bits", "bitops"))
    told = json.loads((tmp_path / "out.json").read_text())
    inspected = json.loads(dither("inspect out --json").stdout)
    assert inspected["notes"] == told["notes"]
    assert inspected["notes"]["evolve"]["groups"] == data["groups"]
    for row in inspected["layers"]["rows"]:
        if row["name"] in data["groups"]:
            size = data["groups"][row["name"]]
            assert row["weight"] == f"int4 asym group {size}"
            modulation = row["kind"] == "adaln"
            assert row["act"] == (None if modulation else f"int8 asym per token, group {size} dynamic")
    shown = " ".join(dither("inspect out").stdout.split())
    assert {int(size) for size in re.findall(r"int4 asym group (\d+)", shown)} == set(data["groups"].values())


# --- an interrupted run


@pytest.fixture
def interrupt(monkeypatch):
    """A real SIGINT as soon as the run has stored something of this name; gives the names of all that is stored."""
    plain, names = FolderStore.put, list[str]()

    def after(wanted: str) -> list[str]:
        names.clear()

        def put(self, name, tensors):
            plain(self, name, tensors)
            names.append(name)
            if name == wanted:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(FolderStore, "put", put)
        return names

    return after


@pytest.fixture
def resumed(dither, refused, model, tmp_path, interrupt, stored):
    """Checks that a run that is interrupted after some of what it stores, and goes on, gives what a whole one does."""

    def check(recipe: str, choose) -> None:
        made = interrupt("")
        assert dither(f"quantize {model} -o whole {recipe}").exit_code == 0
        everything = list(made)
        interrupt(choose(everything))
        refused(dither(f"quantize {model} -o out {recipe}"), "interrupted; kept:", "--resume goes on from there")
        first = list(made)
        assert 0 < len(first) < len(everything)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out.partial", "whole"]
        interrupt("")
        result = dither(f"quantize {model} -o out {recipe} --resume")
        assert result.exit_code == 0, result.stderr
        assert [*first, *made] == everything  # nothing is measured or rounded twice
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]
        for again, once in zip(stored(tmp_path / "out")[:2], stored(tmp_path / "whole")[:2], strict=True):
            assert again == once
        configs = [(tmp_path / name / "transformer/config.json").read_text() for name in ("out", "whole")]
        assert json.loads(configs[0]) == json.loads(configs[1])
        groups = [sorted(f.read_bytes() for f in (tmp_path / x).glob("groups.json")) for x in ("out", "whole")]
        assert groups[0] == groups[1]
        assert len(groups[0]) == ("q-dit" in recipe)

    return check


def searches(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("sensitivity.evolve.")]


@pytest.mark.parametrize("which", [0, 2, 5])
def test_interrupted_in_the_search(resumed, which):
    """Also in the last generation, whose parents have to be those of the run before."""
    resumed(TINY, lambda names: searches(names)[which])


@pytest.mark.parametrize(
    "which",
    [
        f"sensitivity.gptq.{LAYER}",
        LAYER,
        "transformer_blocks.1.norm1.linear",
        "sensitivity.gptq.transformer_blocks.1.ff.net.2",
    ],
)
def test_interrupted_in_gptq(resumed, which):
    """Before a layer is stored, in the middle of a block, between modulation and the rest, and before the last."""
    resumed(TINY, lambda names: which)


@pytest.mark.parametrize("which", [f"sensitivity.low-rank.{LAYER}", "transformer_blocks.0.ff.net.2"])
def test_interrupted_among_branches_and_after_them(resumed, which):
    resumed(f"--recipe ditas-gptq --bits w4a8 {SHORT}", lambda names: which)


def test_another_search_does_not_go_on(dither, refused, model, interrupt):
    made = interrupt("")
    assert dither(f"quantize {model} -o whole {TINY}").exit_code == 0
    interrupt(searches(made)[1])
    refused(dither(f"quantize {model} -o out {TINY}"), "kept: 2 measurements")
    refused(dither(f"quantize {model} -o out {TINY} --resume --set evolve.rounds=2"), "out.partial", "another")


# --- groups that were searched before


def test_a_search_is_used_again(dither, model, stored, tmp_path):
    assert dither(f"quantize {model} -o a {TINY}").exit_code == 0
    result = dither(f"quantize {model} -o b {TINY} --groups a/groups.json --json b.json")
    assert result.exit_code == 0, result.stderr
    assert "assign -> attention -> groups -> gptq -> rtn -> ranges" in result.stdout
    assert "searching" not in result.stderr
    first, second = (stored(tmp_path / name) for name in "ab")
    assert first[1] == second[1]  # the headers tell of two recipes
    assert not (tmp_path / "b/groups.json").exists()
    groups = json.loads((tmp_path / "a/groups.json").read_text())["groups"]
    weights = {row["name"]: row["weight"] for row in json.loads((tmp_path / "b.json").read_text())["layers"]["rows"]}
    assert {name: weights[name] for name in groups} == {n: f"int4 asym group {size}" for n, size in groups.items()}


def test_a_search_of_another_model_is_refused(dither, refused, model, tmp_path):
    assert dither(f"quantize {model} -o a {TINY}").exit_code == 0
    refused(
        dither(f"quantize zoo:digits -o out {DIGITS} --groups a/groups.json"),
        "a/groups.json",
        "norm1.linear",
        "(96, 16)",
    )
    assert nothing_written(tmp_path)


# --- what cannot be asked for


@pytest.mark.parametrize(
    ("options", "names"),
    [
        # groups
        ("--set assign.weight.group=100", [LAYER, "group size 100", "16 input channels"]),
        ("--set assign.weight.group=0 --set assign.adaln.group=0", ["evolve", "no layer has a group size"]),
        ("--set evolve.sizes=[5,7]", ["evolve.sizes [5, 7]", "16 input channels", "transformer_blocks.0"]),
        ("--set evolve.sizes=[]", ["evolve.sizes []", "at least one"]),
        ("--set assign.act.static=true", ["evolve", LAYER.rpartition(".")[0], "static"]),
        # the search
        ("--set evolve.bits=1", ["evolve.bits 1", "the coarsest sizes take", "bits per weight"]),
        ("--set evolve.bitops=1", ["evolve.bitops 1", "the coarsest sizes take", "bit operations"]),
        ("--set evolve.bits=NaN", ["evolve.bits nan", "positive and finite"]),
        ("--set evolve.population=1", ["evolve.population 1", "at least 2"]),
        ("--set evolve.keep=5", ["evolve.keep 5", "1 to 4"]),
        ("--set evolve.rounds=-1", ["evolve.rounds -1"]),
        ("--set evolve.chance=1.5", ["evolve.chance 1.5", "0 to 1"]),
        ("--set evolve.samples=0", ["evolve.samples 0"]),
        ("--set evolve.judge=zoo:fashion --set evolve.samples=1", ["evolve.samples 1", "at least 2 pictures"]),
        ("--set evolve.judge=nonsense", ["nonsense"]),
        # GPTQ, before it has rounded anything
        ("--set evolve=off --set gptq.levels=0 --set gptq.rows=1000000",
         ["transformer_blocks.0.norm1.linear", "calibration rows", "gptq.rows", "1000000", "more samples"]),
        ("--set evolve=off --set gptq.damp=-1", ["gptq.damp -1", "[0, 1]"]),
        ("--set evolve=off --set gptq.block=0", ["gptq.block 0"]),
        ("--set evolve=off --set gptq.time_weights=[0,0]", ["gptq.time_weights [0, 0]", "not all 0"]),
        ("--set attention.bits=9", ["attention.bits 9", "1 to 8"]),
        ("--set attention.bits=8 --set attention.layers=ff", ["attention.layers 'ff' is found in no layer's name"]),
        ("--set low-rank=off", ["'q-dit' has no stage 'low-rank'"]),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for(dither, refused, model, tmp_path, options, names):
    refused(dither(f"quantize {model} -o out {TINY} {options}"), *names)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--recipe ditas-paper", ["low-rank.rank 32", "transformer_blocks.0.ff.net.2", "(16, 64)"]),
        ("--recipe ditas --set low-rank.rounds=0", ["low-rank.rounds 0"]),
        ("--recipe ditas --set low-rank.bits=1", ["low-rank.bits 1"]),
        ("--recipe ditas --set low-rank.layers=nowhere", ["low-rank.layers 'nowhere'"]),
        ("--recipe ditas --set smooth.search=[1.1]", ["smooth.search 1.1", "[0, 1]"]),
        ("--recipe ditas-gptq --set low-rank.rows=1000000", ["transformer_blocks.0", "low-rank.rows", "1000000"]),
        ("--recipe gptq --set gptq.clip=0", ["gptq.clip 0"]),
        ("--recipe gptq --bits w9a8", ["w9a8"]),
    ],
)
def test_what_cannot_be_asked_of_branches_and_rounding(dither, refused, model, tmp_path, options, names):
    refused(dither(f"quantize {model} -o out {options} {SHORT}"), *names)
    assert nothing_written(tmp_path)


def test_too_few_rows_after_a_search_keep_what_was_measured(dither, refused, model, tmp_path):
    words = [LAYER, "calibration rows", "gptq.rows asks for 1000000", "more samples", "kept: "]
    refused(dither(f"quantize {model} -o out {TINY} --set gptq.rows=1000000"), *words)
    assert [p.name for p in tmp_path.iterdir()] == ["out.partial"]


@pytest.mark.parametrize(("limit", "what"), [("bits", "bits per weight"), ("bitops", "bit operations")])
def test_the_least_that_is_named_can_be_met(dither, refused, model, tmp_path, limit, what):
    sentence = refused(dither(f"quantize {model} -o out {TINY} --set evolve.{limit}=1"), f"evolve.{limit} 1", what)
    least = float(sentence.split("take ")[1].split()[0])
    result = dither(f"quantize {model} -o out {TINY} --set evolve.{limit}={least}")
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "out/groups.json").read_text())
    assert found["costs"][limit] == pytest.approx(least, rel=1e-5)
    assert found["limits"][limit] == pytest.approx(least, rel=1e-5)
    counted = {n: size for n, size in found["groups"].items() if limit == "bits" or not n.endswith("norm1.linear")}
    assert set(counted.values()) == {16}  # the coarsest of all; groups of weight-only layers are no bit operations
