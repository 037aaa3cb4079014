"""Files of group sizes: there and back, recipes with them, and everything that can be wrong with one."""

import json
from dataclasses import replace

import jobs
import pytest
import torch

import dither
from dither import allocation, recipes
from dither.errors import BadRecipe, Refused
from dither.recipes import recipe_from, recipe_to, with_groups
from dither.spec import Act, Bits, Int, Recipe
from dither.stages import SEARCHES, STAGES, Assign, Clip, Groups, HessianTrace, Rtn, Smooth, describe, stages_of

GROUPED = Assign(weight=Int(4, False, 8), act=Act(Int(8, group=8)), adaln=Int(4, False, 8))
SEARCH = HessianTrace(sizes=(4, 8, 16), calls=2)
SEARCHING = Recipe("mine", "", Bits(4, 8), describe((Smooth(), GROUPED, SEARCH, Clip(steps=3), Rtn())))
QUICK = dither.Calibration(samples=4, steps=2)
Q = "transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A quantized pipeline and the file of its search."""
    pipe = jobs.pipeline()
    prints = allocation.fingerprints(pipe.transformer)
    dither.quantize(pipe, SEARCHING, calibration=QUICK)
    path = tmp_path_factory.mktemp("groups") / allocation.FILE
    path.write_text(json.dumps(allocation.found(pipe.transformer, "hessian-trace", prints)))
    return pipe, path


def changed(path, folder, edit):
    """A file with an edit of its data."""
    data = json.loads(path.read_text())
    edit(data)
    other = folder / "other.json"
    other.write_text(json.dumps(data))
    return other


def test_the_file_says_what_was_searched_and_for_what(searched):
    pipe, path = searched
    data = json.loads(path.read_text())
    assert (data["kind"], data["version"], data["stage"]) == ("dither-groups", 1, "hessian-trace")
    assert data["model"]["class"] == "DiTTransformer2DModel"
    assert data["model"]["layers"][Q] == [16, 16]
    plan = {n: pipe.transformer.get_submodule(n).spec.weight.group for n in data["groups"]}
    assert plan == data["groups"]
    assert len(plan) == 14
    assert data["costs"]["bits"] <= data["limits"]["bits"] == 9.0


def test_what_was_read_quantizes_to_the_same_bits(searched):
    pipe, path = searched
    sizes = allocation.read_groups(path, jobs.pipeline())
    recipe = with_groups(SEARCHING, sizes)
    assert recipe_from(json.loads(json.dumps(recipe_to(recipe)))) == recipe  # all that is needed is in it
    again = dither.quantize(jobs.pipeline(), recipe, calibration=QUICK)
    assert jobs.same_tensors(again.transformer, pipe.transformer)
    assert allocation.read_groups(str(path), jobs.pipeline().transformer) == sizes


def test_weights_are_known_in_any_dtype_that_holds_them(searched):
    _, path = searched
    assert allocation.read_groups(path, jobs.pipeline().transformer.double())


def test_layers_that_were_not_searched_may_differ(searched):
    _, path = searched
    pipe = jobs.pipeline()
    pipe.transformer.proj_out_2.weight.data += 1
    assert allocation.read_groups(path, pipe)


# --- recipes with given sizes


def tags(recipe: Recipe) -> list[str]:
    return [tag for tag, _ in recipe.stages]


def test_given_sizes_take_the_place_of_the_search():
    recipe = with_groups(SEARCHING, {Q: 4})
    assert tags(recipe) == ["smooth", "assign", "groups", "clip", "rtn"]
    assert stages_of(recipe)[2] == Groups({Q: 4})
    assert replace(recipe, stages=SEARCHING.stages) == SEARCHING
    assert with_groups(recipe, {Q: 8}) == with_groups(SEARCHING, {Q: 8})


def test_without_a_search_they_follow_assign():
    recipe = with_groups(recipes.get("rtn-clip", "w4a8"), {Q: 4})
    assert tags(recipe) == ["assign", "groups", "clip", "rtn", "ranges", "share"]
    with pytest.raises(BadRecipe, match="recipe 'mine' has no stage 'assign'"):
        with_groups(Recipe("mine", "", Bits(4), describe((Rtn(),))), {Q: 4})


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_that_searches_can_be_given_sizes(name):
    recipe = recipes.get(name)
    assert allocation.search_of(with_groups(recipe, {Q: 4})) is None
    assert allocation.search_of(recipe) in {*SEARCHES, None}
    assert set(STAGES) >= SEARCHES


# --- files that cannot be used


def without(key):
    return lambda data: data.pop(key)


def put(value, *keys):
    def edit(data):
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put("dither-plan", "kind"), "is not a file of group sizes: its kind must be 'dither-groups'"),
        (without("kind"), "is not a file of group sizes"),
        (put(2, "version"), "has version 2, and only 1 is known"),
        (put(True, "version"), "has version True"),
        (without("version"), "has version None"),
        (without("groups"), "has no field 'groups'"),
        (without("model"), "has no field 'model'"),
        (put(None, "model"), "field 'model' cannot be None"),
        (put([], "groups"), r"field 'groups' cannot be \[\]"),
        (put(4.0, "groups", Q), "field 'groups' cannot be"),
        (put(True, "groups", Q), "field 'groups' cannot be"),
        (put(3, "stage"), "field 'stage' cannot be 3"),
        (put("much", "costs", "bits"), "field 'costs' cannot be"),
        (put(float("nan"), "limits", "bits"), "field 'limits' cannot be"),
        (put(0, "model", "digest"), "field 'model.digest' cannot be 0"),
        (put("import os", "code"), "has an unknown field 'code'"),
        (put("import os", "model", "code"), "has an unknown field 'model.code'"),
        (put([16], "model", "layers", Q), rf"model.layers gives layer '{Q}' the shape \[16\]"),
        (put([16, -16], "model", "layers", Q), r"the shape \[16, -16\]"),
        (put([16, True], "model", "layers", Q), r"the shape \[16, True\]"),
        (put(8, "groups", "nowhere"), "names layer 'nowhere' only in one of model.layers and groups"),
        (put(0, "groups", Q), f"gives layer '{Q}' the group size 0, which does not divide its 16 channels"),
        (put(5, "groups", Q), f"gives layer '{Q}' the group size 5, which does not divide its 16 channels"),
    ],
)
def test_a_wrong_field_is_named(searched, tmp_path, edit, words):
    other = changed(searched[1], tmp_path, edit)
    with pytest.raises(BadRecipe, match=words) as e:
        allocation.open_groups(other)
    assert str(other) in str(e.value)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < len(str(other)) + 250


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "3", '"' + "x" * 5000, '{"kind": "dither-groups"}'])
def test_what_is_no_such_json_is_named(tmp_path, text):
    path = tmp_path / "g.json"
    path.write_text(text)
    with pytest.raises(BadRecipe, match=r"g\.json' (is not|has version None)") as e:
        allocation.read_groups(path, jobs.pipeline())
    assert len(str(e.value)) < len(str(path)) + 150


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(BadRecipe, match=r"nowhere\.json' is not there"):
        allocation.open_groups(tmp_path / "nowhere.json")
    with pytest.raises(BadRecipe, match="is not a file: a file of group sizes is needed"):
        allocation.open_groups(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadRecipe, match="binary' is not JSON"):
        allocation.open_groups(tmp_path / "binary")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(BadRecipe, match="large' has 5242880 bytes, and a file of group sizes has at most 4194304"):
        allocation.open_groups(tmp_path / "large")


def test_another_model_is_refused(searched, tmp_path):
    quantized, path = searched
    with pytest.raises(BadRecipe, match=r"is of a model with other weights: search again"):
        allocation.read_groups(path, jobs.pipeline(seed=1))
    with pytest.raises(
        BadRecipe, match=r"layer 'transformer_blocks.0.norm1.linear' has shape \(96, 16\), and here it has"
    ):
        allocation.read_groups(path, jobs.pipeline(attention_head_dim=16))
    with pytest.raises(
        BadRecipe, match=r"group size for layer 'transformer_blocks.1.norm1.linear' of a 'DiTTransformer2DModel'"
    ):
        allocation.read_groups(path, jobs.pipeline(num_layers=1))
    with pytest.raises(BadRecipe, match=r"this Linear has no such layer"):
        allocation.read_groups(path, torch.nn.Linear(2, 2))
    with pytest.raises(Refused, match="is quantized already: group sizes belong to the full-precision model"):
        allocation.read_groups(path, quantized)
    with pytest.raises(Refused, match="is quantized already"):
        allocation.fingerprints(quantized.transformer)


def test_one_changed_weight_is_noticed(searched):
    pipe = jobs.pipeline()
    pipe.transformer.get_submodule(Q).weight.data[0, 0] += 1e-6
    with pytest.raises(BadRecipe, match="other weights"):
        allocation.read_groups(searched[1], pipe)
