"""Recipes as data: building, JSON, settings, and everything that can be wrong with them."""

import json

import jobs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dither
from dither import recipes
from dither.errors import BadRecipe, DitherError
from dither.quantization import plan_ahead
from dither.recipes import RECIPES, get, override, recipe_from, recipe_to
from dither.spec import Act, Bits, Float8, Int, Rotation, Views
from dither.stages import (
    Assign,
    Mixed,
    Program,
    Rotate,
    Share,
    Smooth,
    TimedSmooth,
    stages_of,
)

WIDTHS = [None, "w8a8", "w4a8", "w4a4", "w2", "w1a1", "w3a16"]


def assign_of(recipe) -> Assign:
    return next(s for s in stages_of(recipe) if isinstance(s, Assign))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_builds_at_every_width_and_round_trips(name, bits):
    recipe = get(name, bits)
    entry = RECIPES[name]
    assert (recipe.name, recipe.paper) == (entry.name, entry.paper)
    assert recipe.bits == (entry.bits if bits is None else Bits.parse(bits))
    assert stages_of(recipe) == (*entry.stages(recipe.bits), Share())
    assert recipe_from(json.loads(json.dumps(recipe_to(recipe)))) == recipe
    assert recipe_from(recipe_to(recipe)) == recipe


@pytest.mark.parametrize("name", recipes.names())
def test_entries_read_well(name):
    entry = RECIPES[name]
    assert entry.name == name
    assert entry.about.endswith(".")
    assert len({e.about for e in RECIPES.values()}) == len(RECIPES)


def test_modulation_never_goes_below_four_bits():
    assert assign_of(get("rtn", "w2")).adaln == Int(4)
    assert assign_of(get("rtn", "w8")).adaln == Int(8)


@pytest.mark.parametrize("name", [name for name in recipes.names() if RECIPES[name].floating])
def test_float8_on_both_sides_beside_modulation_of_integers(name):
    recipe = get(name, "fp8")
    assert recipe.bits == Bits(8, 8, floating=True)
    assert [tag for tag, _ in recipe.stages] == [tag for tag, _ in get(name, "w8a8").stages]
    assign = assign_of(recipe)
    assert (assign.weight, assign.act, assign.adaln) == (Float8(), Act(Float8()), Int(8))
    assert recipe_from(json.loads(json.dumps(recipe_to(recipe)))) == recipe
    assert override(recipe, ["assign.weight.group=-1", "assign.act.static=true"]).bits == recipe.bits


@pytest.mark.parametrize("name", [name for name in recipes.names() if not RECIPES[name].floating])
def test_recipes_of_integers_refuse_float8(name):
    with pytest.raises(
        BadRecipe, match=f"recipe '{name}' is of integers and has no bits 'fp8'; .* rtn, smoothquant, quarot"
    ):
        get(name, "fp8")


def test_bits_may_be_given_as_text_or_value():
    assert get("rtn", "w4a8") == get("rtn", Bits(4, 8))


def test_a_recipe_by_hand_needs_no_defaults():
    data = {
        "name": "mine",
        "bits": "w4",
        "stages": [{"stage": "assign", "weight": {"kind": "int", "bits": 4}}, {"stage": "rtn"}],
    }
    recipe = recipe_from(data)
    assert stages_of(recipe) == stages_of(recipe_from(json.loads(json.dumps(recipe_to(recipe)))))
    assert assign_of(recipe) == Assign(weight=Int(4))
    assert dict(recipe.stages[0][1])["exclude"] == ""


# --- settings


def test_settings_reach_nested_fields():
    changed = override(
        get("smoothquant"),
        [
            "smooth.alpha=0.7", "smooth.search=[0.25, 0.75]", "smooth.online=true", "assign.weight.bits=3",
            "assign.weight.group=64", "assign.weight.symmetric=false", "assign.act.grid.bits=6", "assign.act.static=true",
            "assign.adaln=null", "assign.exclude=blocks.0", "assign.time_groups=4",
        ],
    )  # fmt: skip
    smooth, assign, *_ = stages_of(changed)
    assert (smooth.alpha, smooth.search, smooth.online) == (0.7, (0.25, 0.75), True)
    want = Assign(Int(3, False, 64), Act(Int(6), static=True), None, "blocks.0", 4)
    assert assign == want


def test_settings_leave_the_recipe_they_change():
    recipe = get("rtn")
    before = recipe_to(recipe)
    override(recipe, ["assign.weight.bits=2"])
    assert recipe_to(recipe) == before
    assert override(recipe, []) == recipe


def test_a_whole_format_may_be_set():
    changed = override(get("rtn"), ['assign.weight={"kind": "codebook", "dim": 4, "size": 256}'])
    assert str(assign_of(changed).weight) == "codebook 256x4"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("smooth.alpha", "STAGE.FIELD=VALUE"), ("alpha=1", "STAGE.FIELD=VALUE"), ("", "STAGE.FIELD=VALUE"),
        ("smooth.stage=rtn", "STAGE.FIELD=VALUE"), ("=1", "STAGE.FIELD=VALUE"),
        ("clip.steps=3", "'smoothquant' has no stage 'clip'; its stages are smooth, assign, rtn, ranges"),
        ("smooth.alhpa=0.5", "stage 'smooth' has no field 'alhpa'; its fields are alpha, vidit_alpha"),
        ("smooth.=1", "no field ''"), ("smooth.alpha.deep=1", "'alpha' has no fields of its own"),
        ("assign.weight.bits=12", "12 bits"), ("assign.weight.bits=high", "assign.weight.*'high'"),
        ("assign.weight.width=8", "assign.weight.*'width'"), ("assign.weight.kind=float", "assign.weight.*'float'"),
        ("smooth.alpha=true", "smooth.alpha cannot be True"), ("smooth.alpha=[1]", "smooth.alpha cannot be"),
        ("smooth.search=0.5", "smooth.search cannot be 0.5"), ("smooth.rows=1.5", "smooth.rows cannot be 1.5"),
        ("rtn.seed=1", "stage 'rtn' has no field 'seed'; its fields are none"),
        ("smooth.alpha=__import__('os').system('false')", "smooth.alpha cannot be"),
        ("smooth.alpha=lambda: 1", "smooth.alpha cannot be"),
        ("smooth.rows=" + "9" * 5000, "smooth.rows cannot be"),
        ("smooth.alpha=" + "[" * 100_000, "smooth.alpha cannot be"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_in_one_sentence(setting, words):
    with pytest.raises(BadRecipe, match=words) as e:
        override(get("smoothquant"), [setting])
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 300


# --- stages switched off


def tags(recipe) -> list[str]:
    return [tag for tag, _ in recipe.stages]


def test_off_leaves_a_stage_out_and_nothing_else():
    recipe = get("vidit-q")
    changed = override(recipe, ["smooth=off"])
    assert tags(changed) == ["rotate", "assign", "rtn", "ranges", "share"]
    assert changed.stages == recipe.stages[1:]
    assert tags(override(recipe, ["smooth = off ", "rotate=off"])) == ["assign", "rtn", "ranges", "share"]
    assert tags(recipe) == ["smooth", "rotate", "assign", "rtn", "ranges", "share"]


def test_off_leaves_out_every_stage_of_the_tag():
    left = override(get("vidit-q-released-mp"), ["widen=off"])
    assert tags(left) == ["smooth", "rotate", "assign", "rtn", "ranges", "share"]


@pytest.mark.parametrize("order", [1, -1])
def test_off_goes_with_other_settings(order):
    changed = override(get("vidit-q"), ["rotate=off", "smooth.vidit_alpha=0.25"][::order])
    assert tags(changed) == ["smooth", "assign", "rtn", "ranges", "share"]
    assert stages_of(changed)[0].vidit_alpha == 0.25


def test_a_stage_may_be_set_and_then_switched_off():
    assert override(get("vidit-q"), ["smooth.vidit_alpha=0.1", "smooth=off"]) == override(
        get("vidit-q"), ["smooth=off"]
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["clip=off"], "'vidit-q' has no stage 'clip'; its stages are smooth, rotate, assign, rtn, ranges"),
        (["off=off"], "no stage 'off'"), (["=off"], "no stage ''"),
        (["smooth"], "STAGE.FIELD=VALUE, or STAGE=off"), (["smooth=on"], "STAGE.FIELD=VALUE, or STAGE=off"),
        (["smooth=OFF"], "STAGE=off"), (["smooth.stage=off"], "STAGE=off"),
        (["smooth=off", "smooth.alpha=0.5"], "'smooth.alpha=0.5': an earlier setting has switched stage 'smooth' off"),
        (["smooth=off", "smooth=off"], "an earlier setting has switched stage 'smooth' off"),
        ([f"{t}=off" for t in ("smooth", "rotate", "assign", "rtn", "ranges", "share")],
         "'share=off' switches the last stage of recipe 'vidit-q' off: nothing is left"),
    ],
)  # fmt: skip
def test_what_cannot_be_switched_off_is_named(given, words):
    with pytest.raises(BadRecipe, match=words):
        override(get("vidit-q"), given)


def test_without_the_stage_that_assigns_formats_nothing_would_be_quantized():
    with pytest.raises(DitherError, match="'rtn' left every linear of DiTTransformer2DModel in full precision"):
        dither.quantize(jobs.pipeline(), "rtn", settings=["assign=off"])
    with pytest.raises(BadRecipe, match=r"is to have int4 asym per row weights, but no stage of the recipe makes them"):
        dither.quantize(jobs.pipeline(), "vidit-q", settings=["smooth=off", "rotate=off", "rtn=off"])


# --- what is wrong with a recipe


def test_an_unknown_recipe_lists_the_names():
    with pytest.raises(
        BadRecipe, match="unknown recipe 'magic'; known are rtn, rtn-clip, smoothquant, quarot, gptq, vidit-q"
    ):
        get("magic")


@pytest.mark.parametrize(
    "bits", ["", "8", "w", "w0", "w9a8", "w4a", "w4a0", "w4a9", "wxax", "w4b8", "a8", "w-1", "w٣", "w4a8a8"]
)
def test_bad_bits_are_shown(bits):
    with pytest.raises(BadRecipe, match="bits '"):
        get("rtn", bits)


GOOD = {"name": "mine", "bits": "w8", "stages": [{"stage": "rtn"}]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "JSON object, not list"), ("rtn", "not str"), (None, "not NoneType"), ({}, "needs a name"),
        ({**GOOD, "name": 3}, "needs a name"), ({**GOOD, "bits": 8}, "needs a name"),
        ({**GOOD, "stages": {}}, "needs a name"),
        ({**GOOD, "code": "print(1)"}, "no field 'code'"), ({**GOOD, "stages": ["rtn"]}, "'mine' must be an object"),
        ({**GOOD, "stages": [{"alpha": 1}]}, "with a 'stage' tag"), ({**GOOD, "stages": [{"stage": 3}]}, "'stage' tag"),
        ({**GOOD, "stages": [{"stage": "os.system"}]}, "unknown stage 'os.system'"),
        ({**GOOD, "stages": [{"stage": "__class__"}]}, "unknown stage '__class__'"),
        ({**GOOD, "stages": [{"stage": "smooth", "__class__": 1}]}, "no field '__class__'"),
        ({**GOOD, "stages": [{"stage": "smooth", "alpha": "__import__('os')"}]}, "smooth.alpha cannot be"),
        ({**GOOD, "stages": [{"stage": "smooth", "rows": 1e400}]}, "smooth.rows cannot be inf"),
        ({**GOOD, "stages": [{"stage": "assign", "weight": {"kind": ["int"]}}]}, "assign.weight"),
        ({**GOOD, "stages": [{"stage": "rtn"}, {"stage": "smooth"}]}, "cannot follow"),
        ({**GOOD, "bits": "w8; import os"}, "bits 'w8; import os'"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_named_in_one_sentence(data, words):
    with pytest.raises(BadRecipe, match=words) as e:
        recipe_from(data)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("depth", [300, 3_000, 30_000])
def test_deep_nesting_is_an_error_and_no_crash(depth):
    nest: object = 1
    for i in range(depth):
        nest = [nest] if i % 2 else {"kind": "act", "grid": nest}
    for value in (nest, {"a": nest}):
        with pytest.raises(BadRecipe):
            recipe_from({**GOOD, "stages": [{"stage": "assign", "weight": value}]})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "bits", "group", "grid", "stage", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(["smooth", "rotate", "assign", "mixed", "integer-program", "widen", "clip", "other"]), st.dictionaries(
    st.sampled_from(["alpha", "weight", "act", "steps", "at", "search", "layers", "blocks", "threshold"]), JSON, max_size=3
))  # fmt: skip
def test_any_json_is_a_recipe_or_one_clear_error(tag, fields):
    data = {"name": "mine", "bits": "w8", "stages": [{"stage": tag, **fields}]}
    try:
        recipe = recipe_from(data)
    except DitherError as e:
        assert str(e)  # noqa: PT017
        return
    assert stages_of(recipe)[0].tag == tag


# --- ViDiT-Q


def stage_of(recipe, kind):
    return next((s for s in stages_of(recipe) if isinstance(s, kind)), None)


@pytest.mark.parametrize("bits", ["w8a8", "w6a6", "w4a8", "w4a4"])
def test_vidit_q_scales_then_rotates_then_rounds_once_with_zero_points(bits):
    recipe = get("vidit-q", bits)
    assert tags(recipe) == ["smooth", "rotate", "assign", "rtn", "ranges", "share"]
    assign, widths = assign_of(recipe), Bits.parse(bits)
    assert assign.weight == Int(widths.weight, symmetric=False)
    assert assign.act == Act(Int(widths.act, symmetric=False))  # dynamic, per token


@pytest.mark.parametrize(
    ("bits", "averages"),
    [
        ("w8a8", (None, None)),
        ("w4a8", (4.75, None)),
        ("w4a4", (4.75, 4.75)),
        ("w6a6", (6.75, 6.75)),
        ("w4", (4.75, None)),
    ],
)
@pytest.mark.parametrize(
    ("name", "kind"), [("vidit-q-mp", Mixed), ("vidit-q-mp-stored", Mixed), ("vidit-q-ilp", Program)]
)
def test_mixed_precision_is_vidit_q_with_one_more_stage_and_a_budget(name, kind, bits, averages):
    recipe = get(name, bits)
    stage = stage_of(recipe, kind)
    assert (stage.weight, stage.act) == averages
    assert stage.stored == (name != "vidit-q-mp")
    assert override(recipe, [f"{stage.tag}=off"]).stages == get("vidit-q", bits).stages


def test_a_budget_of_few_bits_can_be_met():
    """Widths start at the one asked for."""
    assert stage_of(get("vidit-q-mp", "w2a3"), Mixed) == Mixed(2.75, 3.75, (2, 4, 6, 8), (3, 4, 6, 8))


def test_the_first_version_has_ranges_and_no_rotation():
    assert tags(get("vidit-q-timed")) == ["assign", "timed-smooth", "rtn", "ranges", "share"]
    assert [stage_of(get("vidit-q-timed", b), TimedSmooth).vidit_alpha for b in ("w4a8", "w6a6")] == [(0.89,), (0.375,)]


def test_the_papers_w8a8_is_dynamic_ranges_alone():
    assert tags(get("vidit-q-paper", "w8a8")) == ["assign", "rtn", "ranges", "share"]
    assert tags(get("vidit-q-paper", "w6a6")) == tags(get("vidit-q", "w6a6"))
    assert assign_of(get("vidit-q-paper", "w8a8")).act == Act(Int(8, symmetric=False))
    assert {assign_of(get("vidit-q-paper", b)).adaln for b in ("w8a8", "w4a8")} == {None}


def test_the_released_presets_differ_where_they_are_said_to():
    assert stage_of(get("vidit-q-released", "w8a8"), Rotate) is None
    assert [stage_of(get("vidit-q-released", b), Smooth).vidit_alpha for b in ("w4a8", "w6a6")] == [0.99, 0.375]
    acts = [assign_of(get("vidit-q-released", b)).act for b in ("w8a8", "w4a4")]
    assert acts == [Act(Int(8)), Act(Int(4, symmetric=False))]
    assert assign_of(get("vidit-q-released", "w4a8")).adaln is None


def widths_by_time(name: str) -> dict[str, list[int]]:
    """Bits of each layer's weight, from low to high noise."""
    found = {}
    for layer, spec in plan_ahead(jobs.pipeline(num_layers=3), get(name)).promised.items():
        ran = [spec.specs[i] for i in spec.select] if isinstance(spec, Views) else [spec] * 4
        found[layer.removeprefix("transformer_blocks.")] = [r.weight.bits for r in ran]
    return found


def test_the_released_plan_widens_by_name():
    for layer, bits in widths_by_time("vidit-q-released-mp").items():
        assert bits == [8 if layer.startswith(("0.", "2.")) or ".ff." in layer else 4] * 4


def test_the_first_released_plan_widens_the_noisiest_quarter():
    for layer, bits in widths_by_time("vidit-q-shipped-mp").items():
        assert bits == [8 if ".ff." in layer else 4] * 3 + [8]


@pytest.mark.parametrize("name", ["quarot", "vidit-q", "vidit-q-released", "vidit-q-timed", "vidit-q-shipped-mp"])
def test_what_is_stored_reloads_to_the_same_bits(name, tmp_path):
    pipe = dither.quantize(jobs.pipeline(), name, "w4a4", calibration=dither.Calibration(samples=10, steps=4, calls=4))
    want = jobs.outputs(pipe.transformer)
    dither.save(pipe, tmp_path / "saved")
    assert torch.equal(jobs.outputs(dither.load(tmp_path / "saved").transformer), want)


def test_data_free_balancing_draws_no_picture(monkeypatch):
    monkeypatch.setattr("dither.quantization.record", lambda *a, **k: pytest.fail("it asked for calibration calls"))
    settings = ["smooth.data_free=true", "smooth.calibrate=false", "rotate.threshold=null"]
    model = dither.quantize(jobs.pipeline(), "vidit-q", settings=settings).transformer
    q, fc2 = (model.transformer_blocks[0].get_submodule(name).spec for name in ("attn1.to_q", "ff.net.2"))
    assert (q.rotation, fc2.rotation) == (Rotation(16), Rotation(64))
    assert fc2.pre_scale == 0  # nothing is known of it
