"""Recipes as data: building, JSON, settings, and everything that can be wrong with them."""

import json
from dataclasses import replace

import jobs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dither
from dither import recipes
from dither.checkpoint import header_of
from dither.errors import BadFormat, BadRecipe, DitherError
from dither.inspection import size_on_disk
from dither.quantization import plan_ahead
from dither.recipes import RECIPES, get, override, recipe_from, recipe_to
from dither.spec import Act, Bits, Int, LinearSpec, Rotation, Views
from dither.stages import (
    SEARCHES,
    Assign,
    Evolve,
    Gptq,
    Mixed,
    Program,
    Rotate,
    Smooth,
    SplitLowRank,
    TimedSmooth,
    stages_of,
)
from dither.stages.granularity import Limits, problem_of

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
    assert stages_of(recipe) == entry.stages(recipe.bits)
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
    assert tags(changed) == ["rotate", "assign", "rtn", "ranges"]
    assert changed.stages == recipe.stages[1:]
    assert tags(override(recipe, ["smooth = off ", "rotate=off"])) == ["assign", "rtn", "ranges"]
    assert tags(recipe) == ["smooth", "rotate", "assign", "rtn", "ranges"]


def test_off_leaves_out_every_stage_of_the_tag():
    assert tags(override(get("vidit-q-released-mp"), ["widen=off"])) == ["smooth", "rotate", "assign", "rtn", "ranges"]


@pytest.mark.parametrize("order", [1, -1])
def test_off_goes_with_other_settings(order):
    changed = override(get("vidit-q"), ["rotate=off", "smooth.vidit_alpha=0.25"][::order])
    assert tags(changed) == ["smooth", "assign", "rtn", "ranges"]
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
        ([f"{t}=off" for t in ("smooth", "rotate", "assign", "rtn", "ranges")],
         "'ranges=off' switches the last stage of recipe 'vidit-q' off: nothing is left"),
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
    assert tags(recipe) == ["smooth", "rotate", "assign", "rtn", "ranges"]
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
    assert tags(get("vidit-q-timed")) == ["assign", "timed-smooth", "rtn", "ranges"]
    assert [stage_of(get("vidit-q-timed", b), TimedSmooth).vidit_alpha for b in ("w4a8", "w6a6")] == [(0.89,), (0.375,)]


def test_the_papers_w8a8_is_dynamic_ranges_alone():
    assert tags(get("vidit-q-paper", "w8a8")) == ["assign", "rtn", "ranges"]
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


# --- Q-DiT and DiTAS


DRAWN = dither.Calibration(samples=10, steps=4, calls=4)
SHRUNK = {
    "evolve": ("population=4", "keep=2", "rounds=1", "samples=2", "steps=2"),
    "group-program": ("samples=2", "steps=2"),
    "hessian-trace": ("calls=2",),
    "halve": ("candidates=4", "samples=2", "most=4", "steps=2"),
}
SEARCHED = ("q-dit", "q-dit-ilp", "q-dit-trace", "q-dit-halving", "q-dit-paper")
GROUPED = (*SEARCHED, "ditas", "ditas-gptq", "ditas-paper")
BY_64 = tuple(f"assign.{what}.group=64" for what in ("weight", "act.grid", "adaln"))
"""Of 64 and 256 channels: coarser sizes are left to choose, and finer ones to be paid by them."""


def small(name: str) -> list[str]:
    """Settings with which a search draws few pictures, and leaves the limits something to decide."""
    found = [f"{tag}.{setting}" for tag in tags(get(name)) for setting in SHRUNK.get(tag, ())]
    judge = ["evolve.judge=zoo:fashion"] if name == "q-dit-paper" else []
    return [*found, *judge, *(BY_64 if name in SEARCHED else ())]


def narrow(layers: int = 1):
    """Of 64 channels, which branches of rank 32 and the sizes of the searches fit."""
    return jobs.pipeline(num_attention_heads=8, num_layers=layers)


def grouped(name: str, *settings: str, bits: str = "w4a8"):
    """The narrow model after a recipe."""
    return dither.quantize(narrow(), name, bits, settings=settings, calibration=DRAWN).transformer


def specs_of(model) -> dict:
    return dict(header_of(model).plan.layers)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("gptq", "assign gptq rtn ranges"),
        ("q-dit", "assign attention evolve gptq rtn ranges"),
        ("q-dit-ilp", "assign attention group-program gptq rtn ranges"),
        ("q-dit-trace", "assign attention hessian-trace gptq rtn ranges"),
        ("q-dit-halving", "assign attention halve gptq rtn ranges"),
        ("q-dit-paper", "assign attention evolve gptq rtn ranges"),
        ("ditas", "smooth assign low-rank rtn ranges"),
        ("ditas-gptq", "smooth assign low-rank gptq rtn ranges"),
        ("ditas-paper", "smooth assign low-rank rtn ranges"),
    ],
)
@pytest.mark.parametrize("bits", ["w6a8", "w4a8", "w8a8", "w4a4", "w3a8"])
def test_groups_are_assigned_then_searched_then_rounded(name, order, bits):
    recipe, widths = get(name, bits), Bits.parse(bits)
    assert tags(recipe) == order.split()
    assign = assign_of(recipe)
    group = 0 if name == "gptq" else 128 if name in SEARCHED else 32
    by_token = Int(widths.act, symmetric=False, group=128 if name in SEARCHED else 0)
    assert (assign.weight, assign.act) == (Int(widths.weight, symmetric=False, group=group), Act(by_token))
    kept = name == "ditas-paper"
    assert assign.adaln == (None if kept else Int(max(widths.weight, 4), symmetric=False, group=group))


def test_the_searches_of_one_method_differ_in_the_search_alone():
    without = [override(get(name), [f"{search}=off"]).stages for name, search in (
        ("q-dit", "evolve"), ("q-dit-ilp", "group-program"), ("q-dit-trace", "hessian-trace"), ("q-dit-halving", "halve"),
    )]  # fmt: skip
    assert all(stages == without[0] for stages in without)
    plain = override(get("q-dit-paper"), ["evolve=off", "gptq=off"]).stages
    assert plain == override(get("q-dit"), ["evolve=off", "gptq=off"]).stages


def test_the_papers_settings_differ_where_they_are_said_to():
    search, ours = (stage_of(get(name), Evolve) for name in ("q-dit-paper", "q-dit"))
    assert (search.population, search.keep, search.rounds, search.samples, search.steps) == (50, 10, 10, 800, 50)
    assert (search.guidance, search.judge, ours.judge) == (1.0, "inception", "")
    assert set(search.sizes) == {32, 64, 128, 192, 288}
    plain, best = (stage_of(get(name), Gptq) for name in ("q-dit-paper", "q-dit"))
    assert (plain.act_order, plain.bias, plain.levels) == (False, False, 0)
    assert (best.act_order, best.bias, best.levels) == (True, True, 32)
    branches = [stage_of(get(name), SplitLowRank) for name in ("ditas", "ditas-gptq", "ditas-paper")]
    assert [(b.rank, b.bits, b.weighted) for b in branches] == [(0, 8, False), (0, 8, True), (32, None, False)]


def test_without_gptq_and_search_it_is_rounding_to_nearest_in_groups():
    """``rtn`` then rounds everything that GPTQ would have."""
    formats = (
        'assign.weight={"kind": "int", "bits": 4, "symmetric": false, "group": 128}',
        'assign.adaln={"kind": "int", "bits": 4, "symmetric": false, "group": 128}',
        'assign.act.grid={"kind": "int", "bits": 8, "symmetric": false, "group": 128}',
        "assign.fit=true",
    )
    nearest = grouped("rtn", *formats)
    assert jobs.same_tensors(grouped("q-dit", "evolve=off", "gptq=off"), nearest)
    compensated = grouped("q-dit", "evolve=off")
    assert specs_of(compensated) == specs_of(nearest)
    assert not jobs.same_tensors(compensated, nearest)
    notes = header_of(compensated).recipe["notes"]
    assert {name for name, note in notes.items() if "gptq" in note} == set(specs_of(compensated))


def test_without_a_search_every_layer_has_the_size_that_was_assigned():
    uniform = specs_of(grouped("q-dit", "evolve=off", "gptq=off", *BY_64))
    assert {spec.weight.group for spec in uniform.values()} == {64}
    chosen = specs_of(grouped("q-dit", "gptq=off", *small("q-dit")))
    assert chosen.keys() == uniform.keys()
    for spec in chosen.values():
        assert spec.act is None or spec.act.grid.group == spec.weight.group  # one size for both sides


@pytest.mark.parametrize("name", ["ditas", "ditas-gptq"])
def test_branch_and_smoothing_can_be_left_out(name):
    def kinds(*settings):
        return {(s.lowrank is not None, s.pre_scale > 0) for s in specs_of(grouped(name, *settings)).values()}

    assert (True, True) in kinds()
    assert kinds("low-rank=off") == {(False, True), (False, False)}  # modulation is not smoothed
    assert kinds("smooth=off") == {(True, False), (False, False)}  # and has no branch
    assert kinds("smooth=off", "low-rank=off") == {(False, False)}


def test_what_attention_reads_can_be_quantized_too():
    without, with_it = (
        plan_ahead(narrow(2), override(get("q-dit"), given)).specs for given in ([], ["attention.bits=8"])
    )
    assert not any(spec.out for spec in without.values())
    for name, spec in with_it.items():
        read = name.endswith(("to_q", "to_k", "to_v"))
        assert spec.out == (Act(Int(8, symmetric=False, group=8)) if read else None)  # heads of 8 channels
        assert replace(spec, out=None) == without[name]
    assert specs_of(grouped("q-dit", "attention.bits=8", *small("q-dit")))["transformer_blocks.0.attn1.to_k"].out


def test_static_inputs_have_a_moving_average_for_a_range():
    static = ("evolve=off", "assign.act.static=true")
    extremes, moving = (grouped("q-dit", *static, f"ranges.momentum={m}") for m in (0, 0.9))
    name = "transformer_blocks.0.attn1.to_q"
    assert specs_of(moving)[name].act == Act(Int(8, symmetric=False, group=64), static=True)
    a, b = (model.get_submodule(name).act_scale for model in (moving, extremes))
    assert (a <= b * 1.0001).all()
    assert not torch.equal(a, b)
    with pytest.raises(BadRecipe, match=r"evolve: layer 'transformer_blocks.0.\S+' has static activations"):
        grouped("q-dit", *small("q-dit"), "assign.act.static=true")


SIZED = {
    384: {128: 128, 100: 96, 288: 192}, 1536: {128: 128, 100: 96, 288: 256},  # DiT-S
    768: {128: 128, 100: 96, 288: 256}, 3072: {128: 128, 100: 96, 288: 256},  # DiT-B
    1024: {128: 128, 100: 64, 288: 256}, 4096: {128: 128, 100: 64, 288: 256},  # DiT-L
    1152: {128: 128, 100: 96, 288: 288}, 4608: {128: 128, 100: 96, 288: 288},  # DiT-XL
}  # fmt: skip


@pytest.fixture(scope="module", params=[384, 768, 1024, 1152], ids=["S", "B", "L", "XL"])
def wide(request):
    """One block of a DiT of this width, and the width."""
    head = 72 if request.param == 1152 else 64
    return jobs.pipeline(
        num_layers=1, attention_head_dim=head, num_attention_heads=request.param // head
    ), request.param


def test_groups_are_fitted_to_every_width(wide):
    pipe, width = wide
    for group in (100, 128, 288):
        settings = [f"assign.{what}.group={group}" for what in ("weight", "act.grid", "adaln")]
        specs = plan_ahead(pipe, override(get("q-dit"), ["evolve=off", *settings])).specs
        for name, spec in specs.items():
            inside = 4 * width if name.endswith("ff.net.2") else width
            assert spec.weight.group == SIZED[inside][group]
            assert spec.act is None or spec.act.grid.group == SIZED[inside][group]
        assert len(specs) == 7
    ditas = plan_ahead(pipe, get("ditas")).specs
    assert {spec.weight.group for spec in ditas.values()} == {32}


def test_a_group_that_does_not_divide_is_an_error_where_it_is_not_fitted(wide):
    pipe, width = wide
    for group in (100, 288):
        recipe = override(get("q-dit"), ["assign.fit=false", f"assign.weight.group={group}", "assign.act=null"])
        if width % group:
            with pytest.raises(BadFormat, match=f"layer 'transformer_blocks.0.attn1.to_q': .*{group}.* {width}"):
                plan_ahead(pipe, recipe)
        else:
            assert plan_ahead(pipe, recipe).specs["transformer_blocks.0.attn1.to_q"].weight.group == group


@pytest.mark.parametrize("name", SEARCHED)
def test_searches_choose_among_sizes_that_divide(wide, name):
    pipe, width = wide
    job = jobs.job(pipe.transformer)
    search = next(s for s in stages_of(get(name)) if s.tag in SEARCHES)
    with torch.no_grad():
        assign_of(get(name)).run(job)
        problem = problem_of(job, search.tag, search.sizes, Limits())
    assert problem.allows(problem.uniform)
    coarsest = (0,) * len(problem.units)
    assert width == 1024 or problem.cost(coarsest, "bits") < problem.cost(problem.uniform, "bits")  # there is a choice
    assert set(problem.sizes(problem.uniform).values()) == {128}
    for unit in problem.units:
        inside = 4 * width if unit.layers[0].endswith("ff.net.2") else width
        assert unit.sizes == tuple(sorted({s for s in search.sizes if inside % s == 0}, reverse=True))
        assert {32, 64, 128} <= set(unit.sizes)


def bits_by_hand(spec: LinearSpec, n: int, k: int) -> int:
    """Of all that is stored for a layer: codes in whole bytes a row, ranges, scales, branch, bias."""
    range_ = 32 + (0 if spec.weight.symmetric else 8)
    found = n * 8 * -(-k * spec.weight.bits // 8) + n * (k // (spec.weight.group or k)) * range_
    found += 32 * (n + k * spec.pre_scale)
    if (branch := spec.lowrank) is not None:
        found += branch.rank * (n + k) * (32 if branch.weight is None else branch.weight.bits)
        found += 0 if branch.weight is None else 32 * (branch.rank + n)
    return found


@pytest.mark.parametrize("bits", ["w6a8", "w4a8", "w8a8", "w4a4", "w3a8"])
@pytest.mark.parametrize("name", ["gptq", *GROUPED])
def test_what_groups_store_reloads_to_the_same_bits_and_is_counted(name, bits, tmp_path):
    widths = Bits.parse(bits)
    model = grouped(name, *small(name), bits=bits)
    want = jobs.outputs(model)
    assert torch.isfinite(want).all()
    dither.save(model, tmp_path / "saved")
    assert torch.equal(jobs.outputs(dither.load(tmp_path / "saved")), want)
    specs = specs_of(model)
    shapes = {layer: (m.out_features, m.in_features) for layer in specs for m in [model.get_submodule(layer)]}
    for layer, spec in specs.items():
        modulation = layer.endswith("norm1.linear")
        assert spec.weight.bits == (max(widths.weight, 4) if modulation else widths.weight)
        assert (spec.act is None) == modulation
        assert (spec.lowrank is not None) == (name.startswith("ditas") and not modulation)
    assert len(specs) == (6 if name == "ditas-paper" else 7)
    size = size_on_disk(model, list((tmp_path / "saved").glob("*.safetensors")), 1)
    count = sum(n * k for n, k in shapes.values())
    assert size["bits_per_weight"] == sum(bits_by_hand(specs[x], *shapes[x]) for x in specs) / count
    if name in SEARCHED:  # what is searched takes no more than groups of 64
        uniform = [replace(spec, weight=replace(spec.weight, group=64)) for spec in specs.values()]
        asked = sum(bits_by_hand(spec, *shape) for spec, shape in zip(uniform, shapes.values(), strict=True))
        assert size["bits_per_weight"] <= asked / count
        (note,) = [v for k, v in header_of(model).recipe["notes"].items() if k in SEARCHES]
        assert note["groups"] == {layer: spec.weight.group for layer, spec in specs.items()}
        assert all(note["costs"][what] <= note["limits"][what] for what in ("bits", "bitops"))
