"""Rows of static tables by time: equal parts of the noise level, or where ranges change."""

import math
from dataclasses import replace

import jobs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dither
from dither.checkpoint import header_of
from dither.errors import BadModel, BadRecipe, BadValue
from dither.models import Call, adapter_for
from dither.nn import QAttention
from dither.quantization import plan_ahead
from dither.spec import Act, Bits, Float8, Int, Recipe
from dither.stages import Assign, Attention, Job, Ranges, Rotate, Rtn, TimeGroups, Widen, describe
from dither.stages.time_groups import range_features

STATIC = Assign(weight=Int(8), act=Act(Int(8, False), static=True), adaln=Int(8))
DYNAMIC = Assign(weight=Int(8), act=Act(Int(8)))
LEARNED = TimeGroups(groups=3, learned=True)


def job_after(*stages) -> Job:
    return jobs.run(stages, jobs.pipeline().transformer)


class Loud(nn.Module):
    """A denoiser whose block's input grows with the noise level as it is told to, whatever the latents are."""

    def __init__(self, sizes: dict[int, float]) -> None:
        super().__init__()
        self.sizes = sizes
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"linear": nn.Linear(8, 8), "other": nn.Linear(8, 8)}) for _ in range(2)
        )

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        size = torch.tensor([self.sizes[int(t)] for t in timestep])[:, None]
        base = torch.linspace(-1, 1, 8).expand(len(x), 8)
        first = self.blocks[0]["linear"](size * base)
        return first + self.blocks[0]["other"](base) + sum(layer(base) for layer in self.blocks[1].values())


def loud(sizes: dict[int, float], act: Act) -> Job:
    """A job whose calls have all these timesteps, two samples of different ones in each call."""
    model, times = Loud(sizes).eval(), sorted(sizes)
    pairs = [torch.tensor([a, b]) for a, b in zip(times, times[::-1], strict=True)]
    calls = tuple(Call((torch.zeros(2, 8), t), {}) for t in pairs)
    job = Job(model, adapter_for(model), Bits(8, 8), 0, lambda: calls)
    Assign(weight=Int(8), act=act).run(job)
    return job


class Memory(dict):
    """A store."""

    def put(self, name, tensors):
        self[name] = dict(tensors)


STEPS = {**dict.fromkeys((50, 100, 150), 1.0), **dict.fromkeys((200, 400), 3.0), **dict.fromkeys((800, 900), 9.0)}
SYMMETRIC = Act(Int(8), static=True)


def test_equal_parts_need_no_data():
    job = jobs.job(jobs.pipeline().transformer)

    def refuse():
        raise BadValue("no data here")

    job.record = refuse
    STATIC.run(job)
    with pytest.raises(BadValue, match="no data here"):  # asked for only in the end, to say which rows are empty
        TimeGroups(groups=4, branches=2).run(job)
    assert job.time_edges == (0.25, 0.5, 0.75)
    assert job.branches == 2
    assert {s.act.rows for s in job.specs.values() if s.act is not None} == {8}
    assert all(s.act is None or s.act.static for s in job.specs.values())


def test_a_whole_recipe_has_a_table_row_for_each_group_and_branch():
    recipe = Recipe("test", "", Bits(8, 8), describe((STATIC, TimeGroups(groups=3, branches=2), Rtn(), Ranges())))
    model = dither.quantize(jobs.pipeline(), recipe, calibration=dither.Calibration(samples=10, steps=6)).transformer
    plan = header_of(model).plan
    assert (plan.time_edges, plan.branches) == ((1 / 3, 2 / 3), 2)
    table = model.get_submodule("transformer_blocks.1.attn1.to_out.0").get_buffer("act_scale")
    assert table.shape == (6, 1)
    assert len(table.unique()) > 1


def test_it_is_the_clock_that_assign_would_have_cut():
    by_assign = job_after(replace(STATIC, time_groups=5, branches=2))
    by_stage = job_after(STATIC, TimeGroups(groups=5, branches=2))
    assert by_stage.specs == by_assign.specs
    assert by_stage.time_edges == by_assign.time_edges
    assert torch.equal(by_stage.clock.edges, by_assign.clock.edges)


def test_rows_without_a_call_are_told():
    job = job_after(STATIC)
    said = []
    job.progress = lambda what, done, total: said.append(what)
    TimeGroups(groups=8).run(job)
    seen = {int(r) for call in jobs.calls() for r in job.rows(call)}
    assert 0 < len(seen) < 8
    assert job.notes["time-groups"] == {"empty_rows": sorted(set(range(8)) - seen)}
    assert said == [f"{8 - len(seen)} of 8 rows by time see no calibration call; time groups"]


def test_rows_that_all_have_calls_are_not():
    job = job_after(STATIC, TimeGroups(groups=2))
    assert job.notes == {}


@pytest.mark.parametrize("stage", [TimeGroups(), LEARNED, TimeGroups(branches=2)])
def test_dynamic_recipes_stay_as_they_are(stage):
    job = jobs.job(jobs.pipeline().transformer)
    job.record = None
    for each in (DYNAMIC, stage):
        each.run(job)
    assert job.time_edges == ()
    assert job.branches == 1
    assert {s.act.rows for s in job.specs.values() if s.act is not None} == {1}


@pytest.mark.parametrize("learned", [False, True])
def test_one_group_of_one_branch_is_none(learned):
    job = job_after(replace(STATIC, time_groups=3), TimeGroups(groups=1, learned=learned))
    assert len(job.time_edges) == 2  # those of assign
    assert job_after(STATIC, TimeGroups(groups=1, branches=2)).branches == 2


def test_learned_edges_lie_half_way_between_levels_where_ranges_change():
    job = loud(STEPS, SYMMETRIC)
    LEARNED.run(job)
    assert job.time_edges == pytest.approx((0.175, 0.6), abs=1e-6)
    assert {s.act.rows for s in job.specs.values()} == {3}
    rows = {int(t): int(r) for call in job.calls for t, r in zip(call.args[1], job.rows(call), strict=True)}
    assert rows == {50: 0, 100: 0, 150: 0, 200: 1, 400: 1, 800: 2, 900: 2}
    assert job.notes["time-groups"]["left"] == pytest.approx(0, abs=1e-9)
    assert job.notes["time-groups"]["levels"] == 7


def test_fewer_groups_than_changes_keep_the_largest_change():
    sizes = {100: 1.0, 200: 1.1, 300: 8.0, 400: 9.0}
    job = loud(sizes, SYMMETRIC)
    TimeGroups(groups=2, learned=True).run(job)
    assert job.time_edges == pytest.approx((0.25,), abs=1e-6)


@pytest.mark.parametrize(("budget", "groups"), [(0.6, 2), (0.03, 3), (1e-5, 4)])
def test_a_budget_takes_the_fewest_groups(budget, groups):
    logs = torch.tensor([0.0, 0.0, 2.0, 2.0, 3.0, 3.1])
    total, upper = (float((part - part.mean()).square().sum()) for part in (logs, logs[2:]))
    left = {1: 1.0, 2: upper / total, 3: 0.005 / total, 4: 0.0}
    assert left[groups] <= budget < left[groups - 1]
    job = loud({100 * i: size for i, size in enumerate(logs.exp().tolist(), 1)}, SYMMETRIC)
    TimeGroups(groups=6, learned=True, budget=budget).run(job)
    assert len(job.time_edges) == groups - 1
    assert job.notes["time-groups"]["left"] == pytest.approx(left[groups], abs=1e-6)


ATTENTION = Attention(bits=8, probs=8, static=True)


def test_tables_of_attention_have_the_same_rows():
    job = job_after(DYNAMIC, ATTENTION, TimeGroups(groups=3, branches=2))
    assert len(job.attention) == 2
    for spec in job.attention.values():
        assert {act.rows for act in spec.parts.values()} == {6}
    assert {s.act.rows for s in job.specs.values() if s.act is not None} == {1}
    job = job_after(DYNAMIC, replace(ATTENTION, static=False), TimeGroups(groups=3, branches=2))
    assert {act.rows for spec in job.attention.values() for act in spec.parts.values()} == {1}


def observed(*stages) -> tuple[Job, torch.Tensor]:
    """A job after these stages and learned time groups, and the features (L, D) that these were learned from."""
    job = jobs.job(jobs.pipeline().transformer)
    job.store = Memory()
    with torch.no_grad():
        for stage in (*stages, TimeGroups(groups=2, learned=True)):
            stage.run(job)
    return job, job.store["sensitivity.time-groups.features"]["features"]


def test_edges_are_learned_from_attention_too():
    plain, both = (observed(STATIC, *more)[1] for more in ((), (ATTENTION,)))
    job, attention = observed(DYNAMIC, ATTENTION)
    assert not [n for n, m in job.model.named_modules() if isinstance(m, QAttention)]  # it only looked
    torch.testing.assert_close(both, torch.cat([plain, attention], 1))


def test_features_are_the_ranges_of_each_head_at_each_level():
    job, found = observed(DYNAMIC, Attention(bits=8, symmetric=True, static=True, layers=r"blocks\.0"))
    ends: dict[float, list[torch.Tensor]] = {}
    for call in job.calls:
        for name in ("to_q", "to_k", "to_v"):
            keep = []
            layer = job.model.get_submodule(f"transformer_blocks.0.attn1.{name}")
            handle = layer.register_forward_hook(lambda m, args, y, keep=keep: keep.append(y))
            with torch.no_grad():
                job.model(*call.args, **call.kwargs)
            handle.remove()
            level = float(job.adapter.noise_level(job.model, call)[0])  # one for the whole call
            ends.setdefault(level, []).append(keep[0].unflatten(-1, (2, 8)).abs().amax((0, 1, 3)))  # (heads,)
    want = torch.stack([torch.cat(ends[level]).double() for level in sorted(ends)]).log() / math.sqrt(2)
    assert want.shape == (4, 6)
    torch.testing.assert_close(found, want)


def test_a_shift_of_the_range_counts_where_there_are_zero_points():
    """Of [-1, 1], [0, 2] and [-1, 0.2] two have the same width, and others the same magnitude."""
    lo, hi = torch.tensor([[-1.0], [0.0], [-1.0]]), torch.tensor([[1.0], [2.0], [0.2]])
    want = torch.tensor([[math.log(2), -0.5], [math.log(2), 0.0], [math.log(1.2), -1 / 1.2]])
    torch.testing.assert_close(range_features(lo, hi, Act(Int(8, False), static=True)).float(), want)
    want = torch.tensor([[0.0], [math.log(2)], [0.0]])
    for act in (SYMMETRIC, Act(Float8(), static=True)):
        torch.testing.assert_close(range_features(lo, hi, act).float(), want)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.floats(1e-3, 1e3), st.sampled_from([Act(Int(8, False), True), SYMMETRIC]))
def test_distances_of_ranges_do_not_depend_on_units(unit, act):
    make = torch.Generator().manual_seed(0)
    lo, hi = -torch.rand(5, 4, generator=make) - 0.1, torch.rand(5, 4, generator=make) + 0.1
    a, b = range_features(lo, hi, act), range_features(unit * lo, unit * hi, act)
    torch.testing.assert_close(torch.cdist(a, a), torch.cdist(b, b), rtol=1e-4, atol=1e-5)


def test_groups_of_channels_count_as_one_layer():
    lo, hi = torch.tensor([[-1.0], [-2.0]]), torch.tensor([[1.0], [2.0]])
    one = range_features(lo, hi, SYMMETRIC)
    four = range_features(lo.expand(2, 4), hi.expand(2, 4), SYMMETRIC)
    torch.testing.assert_close(four.diff(dim=0).square().sum(), one.diff(dim=0).square().sum())


def test_silence_at_one_level_is_finite():
    features = range_features(torch.zeros(3, 1), torch.tensor([[0.0], [1.0], [2.0]]), SYMMETRIC)
    assert torch.isfinite(features).all()
    assert features[0] < features[1] - 5


def test_ranges_are_those_after_online_transforms():
    """A rotation spreads what one channel has over a block, so that the learned statistics change with it."""
    found = []
    for rotate in ((), (Rotate(),)):
        job = job_after(*rotate, STATIC)
        TimeGroups(groups=2, learned=True).run(job)
        found.append(job.notes["time-groups"]["left"])
    assert found[0] != pytest.approx(found[1], rel=1e-3)


def test_the_pass_over_calls_is_kept_for_resuming():
    job, again = (loud(STEPS, SYMMETRIC) for _ in range(2))
    job.store = again.store = Memory()
    LEARNED.run(job)
    again.observe = None  # would fail if it were called
    LEARNED.run(again)
    assert again.time_edges == job.time_edges
    assert again.notes == job.notes


def test_more_groups_than_levels_name_both():
    with pytest.raises(BadRecipe, match=r"time-groups\.groups 5: the calibration calls have only 4 noise levels"):
        job_after(STATIC, TimeGroups(groups=5, learned=True))
    assert len(job_after(STATIC, TimeGroups(groups=4, learned=True)).time_edges) == 3


def test_two_stages_that_disagree_on_time_are_an_error():
    with pytest.raises(BadRecipe, match="different time groups"):
        job_after(replace(STATIC, time_groups=2), TimeGroups(groups=3))
    with pytest.raises(BadRecipe, match="different time groups"):
        job_after(STATIC, Widen(layers="norm1.linear", ranges=4, at=(0,), weight=8), TimeGroups(groups=3))
    with pytest.raises(BadRecipe, match=r"time-groups\.learned: another stage has cut the noise level at \[0\.5\]"):
        job_after(replace(STATIC, time_groups=2), LEARNED)


def test_a_plan_is_made_without_data():
    for stage, edges in ((TimeGroups(groups=6), 5), (LEARNED, 0)):
        recipe = Recipe("test", "", Bits(8, 8), describe((STATIC, stage, Rtn(), Ranges())))
        assert len(plan_ahead(jobs.pipeline(), recipe).time_edges) == edges


def test_a_layer_that_some_levels_do_not_reach_is_named():
    job = loud(STEPS, SYMMETRIC)
    whole, first = job.model.forward, job.model.blocks[0]["linear"]
    job.model.forward = lambda x, timestep: first(x) if 200 in timestep else whole(x, timestep)
    calls = tuple(Call((torch.zeros(1, 8), torch.tensor([t])), {}) for t in STEPS)
    job.record = lambda: calls
    with pytest.raises(BadModel, match=r"no denoiser call of noise level 0\.2 reached 'blocks\.0\.other'"):
        LEARNED.run(job)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (TimeGroups(groups=0), r"groups 0: must be 1 to 1000"), (TimeGroups(groups=10**9), r"groups 1000000000"),
        (TimeGroups(branches=0), r"branches 0: must be 1 or 2"), (TimeGroups(branches=3), r"branches 3"),
        (TimeGroups(budget=0.1), r"budget 0\.1: only learned groups"),
        (TimeGroups(learned=True, budget=0.0), r"budget 0\.0: must lie in \(0, 1\)"),
        (TimeGroups(learned=True, budget=1.0), r"budget 1\.0"),
        (TimeGroups(learned=True, budget=float("nan")), r"budget nan"),
    ],
)  # fmt: skip
def test_impossible_switches_are_named(stage, message):
    with pytest.raises(BadRecipe, match=rf"time-groups\.{message}"):
        job_after(STATIC, stage)
