"""Searched group sizes as users keep them: ``quantize`` writes groups.json, and ``--groups`` reads it."""

import json

import pytest

from dither.recipes import recipe_to
from dither.spec import Act, Bits, Int, Recipe
from dither.stages import Assign, GroupProgram, Ranges, Rtn, describe
from dither.store import FolderStore

GROUPED = Assign(weight=Int(4, False, 8), act=Act(Int(8, group=8)), adaln=Int(4, False, 8))
SEARCH = GroupProgram(sizes=(4, 8, 16), samples=2, steps=2)
SHORT = "--samples 2 --steps 2"
Q = "transformer_blocks.0.attn1.to_q"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe_to(Recipe("mine", "", Bits(4, 8), describe((GROUPED, SEARCH, Rtn(), Ranges()))))))
    return path


@pytest.fixture
def searched(dither, model, recipe):
    result = dither(f"quantize {model} -o a --recipe-file {recipe} {SHORT} --json a.json")
    assert result.exit_code == 0, result.stderr
    return result


def test_what_one_run_searched_another_uses(dither, model, recipe, searched, stored, tmp_path):
    assert "'group-program' searches a group size for each layer: the plan shows what it starts from" in searched.stdout
    data = json.loads((tmp_path / "a/groups.json").read_text())
    assert (data["kind"], data["stage"]) == ("dither-groups", "group-program")
    assert len(set(data["groups"].values())) > 1
    notes = json.loads((tmp_path / "a.json").read_text())["notes"]["group-program"]
    assert {key: notes[key] for key in ("groups", "costs", "limits")} == {
        key: data[key] for key in ("groups", "costs", "limits")
    }
    result = dither(f"quantize {model} -o b --recipe-file {recipe} --groups a/groups.json {SHORT} --json b.json")
    assert result.exit_code == 0, result.stderr
    assert "assign -> groups -> rtn" in result.stdout
    assert "searches" not in result.stdout
    assert "measuring" not in result.stderr
    first, second = ((tmp_path / x / "transformer/diffusion_pytorch_model.safetensors").read_bytes() for x in "ab")
    assert first[8 + int.from_bytes(first[:8], "little") :] == second[8 + int.from_bytes(second[:8], "little") :]
    assert not (tmp_path / "b/groups.json").exists()
    said = json.loads((tmp_path / "b.json").read_text())["recipe"]
    assert said["stages"][1] == {"stage": "groups", "sizes": data["groups"]}
    (tmp_path / "again.json").write_text(json.dumps(said))  # what is said is all that is needed
    assert dither(f"quantize {model} -o c --recipe-file again.json {SHORT}").exit_code == 0
    assert stored(tmp_path / "b") == stored(tmp_path / "c")


def test_a_recipe_without_a_search_gets_them_too(dither, model, searched, tmp_path):
    result = dither(f"quantize {model} -o b --recipe rtn --bits w4a8 --groups a/groups.json --json b.json")
    assert result.exit_code == 0, result.stderr
    data = json.loads((tmp_path / "b.json").read_text())
    stages = [stage["stage"] for stage in data["recipe"]["stages"]]
    assert stages == ["assign", "groups", "attention", "rtn", "ranges", "share"]


def test_the_checkpoint_beside_it_loads(dither, searched):
    assert dither("sample a -o a.png -n 2 --steps 2").exit_code == 0


def test_a_search_goes_on_where_it_was_interrupted(dither, refused, model, recipe, searched, tmp_path, monkeypatch):
    plain, done = FolderStore.put, []

    def put(self, name, tensors):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(name)
        plain(self, name, tensors)

    command = f"quantize {model} -o b --recipe-file {recipe} {SHORT}"
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "put", put)
        refused(dither(command), "interrupted; kept: 3 measurements; --resume goes on from there")
    assert dither(f"{command} --resume").exit_code == 0
    assert (tmp_path / "b/groups.json").read_bytes() == (tmp_path / "a/groups.json").read_bytes()


def edited(path, edit):
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (lambda data: data.update(kind="other"), ["groups.json", "kind"]),
        (lambda data: data.update(version=7), ["groups.json", "version 7"]),
        (lambda data: data.update(groups=[]), ["groups.json", "'groups'"]),
        (lambda data: data["groups"].update({Q: 5}), ["groups.json", Q, "5"]),
        (lambda data: data["model"].update(digest="0" * 32), ["groups.json", "other weights"]),
        (lambda data: (data["groups"].update(x=8), data["model"]["layers"].update(x=[8, 8])), ["groups.json", "'x'"]),
        (lambda data: data["model"]["layers"].update({Q: [32, 16]}), ["groups.json", Q, "(32, 16)", "(16, 16)"]),
    ],
)
def test_a_file_that_does_not_fit_is_named_before_any_work(
    dither, refused, model, recipe, searched, tmp_path, edit, names
):
    edited(tmp_path / "a/groups.json", edit)
    refused(dither(f"quantize {model} -o b --recipe-file {recipe} --groups a/groups.json"), *names)
    assert not list(tmp_path.glob("b*"))


def test_what_is_no_file_of_group_sizes_is_named(dither, refused, model, tmp_path):
    (tmp_path / "g.json").write_text("[" * 50_000)
    for name, words in (("nowhere.json", "is not there"), ("g.json", "is not JSON"), (".", "is not a file")):
        refused(dither(f"quantize {model} -o b --groups {name}"), f"'{name}'", words)
    refused(dither("quantize nowhere -o b --groups nowhere.json"), "nowhere.json")  # before the model is opened
    assert not list(tmp_path.glob("b*"))


def test_a_recipe_that_assigns_nothing_takes_none(dither, refused, model, searched):
    refused(dither(f"quantize {model} -o b --set assign=off --groups a/groups.json"), "no stage 'assign'")
