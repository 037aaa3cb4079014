"""Recipes of Q-DiT and DiTAS: order, switches, groups at every width, and true bits of what they make."""

from dataclasses import replace

import jobs
import pytest
import torch

import dither
from dither.checkpoint import header_of
from dither.errors import BadFormat, BadRecipe
from dither.inspection import size_on_disk
from dither.quantization import plan_ahead
from dither.recipes import get, override
from dither.spec import Act, AttentionSpec, Bits, Int, LinearSpec
from dither.stages import (
    SEARCHES,
    Assign,
    Evolve,
    Gptq,
    SplitLowRank,
    stages_of,
)
from dither.stages.granularity import Limits, problem_of


def assign_of(recipe) -> Assign:
    return next(s for s in stages_of(recipe) if isinstance(s, Assign))


def stage_of(recipe, kind):
    return next((s for s in stages_of(recipe) if isinstance(s, kind)), None)


def tags(recipe) -> list[str]:
    return [tag for tag, _ in recipe.stages]


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
    assert tags(recipe) == [*order.split(), "share"]
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
    without, with_it = (plan_ahead(narrow(2), override(get("q-dit"), given)) for given in ([], ["attention.bits=8"]))
    assert without.specs == with_it.specs
    assert not without.attention
    side = Act(Int(8, symmetric=False, group=8))  # heads of 8 channels
    assert set(with_it.attention.values()) == {AttentionSpec(side, side, side)}
    model = grouped("q-dit", "attention.bits=8", *small("q-dit"))
    assert set(header_of(model).plan.attention.values()) == {AttentionSpec(side, side, side)}


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
    assert problem.cost(coarsest, "bits") < problem.cost(problem.uniform, "bits")  # there is a choice
    assert set(problem.sizes(problem.uniform).values()) == {128}
    for unit in problem.units:
        inside = 4 * width if unit.layers[0].endswith("ff.net.2") else width
        listed = {s for s in search.sizes if inside % s == 0}
        assert unit.sizes == tuple(sorted(listed if max(listed) > 128 else listed | {inside}, reverse=True))
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
