"""Static activation tables."""

import math

import jobs
import pytest
import torch

from dither.errors import BadRecipe
from dither.models import Call
from dither.numerics import grid, grouped
from dither.probes import MovingRange
from dither.spec import Act, Int
from dither.stages import Assign, Ranges, Rotate, Rtn
from dither.stages.base import Job

LAYER = "transformer_blocks.1.ff.net.0.proj"


def inputs(model: torch.nn.Module, job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's inputs (B, T, K) over all calls, and the clock row of each sample (B,)."""
    seen, rows = [], []
    for call in jobs.calls():
        handle = model.get_submodule(LAYER).register_forward_pre_hook(lambda m, a: seen.append(a[0]))
        with torch.no_grad():
            model(*call.args, **call.kwargs)
        handle.remove()
        rows.append(job.rows(call))
    return torch.cat(seen), torch.cat(rows)


def stages(act: Act, groups: int = 3, branches: int = 2) -> tuple[Assign, Rtn]:
    return Assign(weight=Int(8), act=act, time_groups=groups, branches=branches), Rtn()


@pytest.mark.parametrize("keep", [1.0, 0.8])
@pytest.mark.parametrize("act", [Act(Int(8), True), Act(Int(8, False), True), Act(Int(4, False, 4), True)], ids=str)
def test_the_table_is_the_min_max_of_each_time_group_and_branch(act, keep):
    model = jobs.pipeline().transformer
    job = jobs.run(stages(act), model)
    x, rows = inputs(model, job)  # weights are quantized already, activations not yet
    with torch.no_grad():
        Ranges(keep=keep).run(job)
    layer = model.get_submodule(LAYER)
    assert layer.spec.act.rows == 6
    assert set(rows.tolist()) == set(range(6))
    for r in range(6):
        mine = grouped(x[rows == r].flatten(0, 1), act.grid.group)  # (n, G, g)
        scale, zero = grid(mine.amin((0, 2)) * keep, mine.amax((0, 2)) * keep, act.grid)
        torch.testing.assert_close(layer.get_buffer("act_scale")[r], scale)
        if zero is not None:
            assert torch.equal(layer.get_buffer("act_zero")[r], zero)


@pytest.mark.parametrize("act", [Act(Int(8, False), True), Act(Int(4, False, 4), True)], ids=str)
def test_a_moving_average_follows_each_call_that_falls_into_a_row(act):
    model = jobs.pipeline().transformer
    job = jobs.run(stages(act), model)
    x, rows = inputs(model, job)
    sizes = [len(job.rows(call)) for call in jobs.calls()]
    with torch.no_grad():
        Ranges(momentum=0.75, keep=0.5).run(job)
    layer = model.get_submodule(LAYER)
    for r in range(6):
        lo = hi = None
        for mine, where in zip(x.split(sizes), rows.split(sizes), strict=True):
            if (here := where == r).any():
                values = grouped(mine[here].flatten(0, 1), act.grid.group)  # (n, G, g)
                low, high = values.amin((0, 2)), values.amax((0, 2))
                lo = low if lo is None else 0.75 * lo + 0.25 * low
                hi = high if hi is None else 0.75 * hi + 0.25 * high
        scale, zero = grid(0.5 * lo, 0.5 * hi, act.grid)
        torch.testing.assert_close(layer.get_buffer("act_scale")[r], scale)
        assert torch.equal(layer.get_buffer("act_zero")[r], zero)


def test_a_moving_average_by_hand():
    """Two groups of two channels, two rows: row 0 sees both calls, row 1 the second alone."""
    probe = MovingRange(groups=2, rows=3, momentum=0.5)
    probe.update(torch.tensor([[[1.0, -1.0, 4.0, 2.0]], [[5.0, 0.0, 3.0, 8.0]]]), torch.tensor([0, 0]))
    probe.update(torch.tensor([[[-3.0, 1.0, 0.0, 0.0]], [[7.0, 9.0, -6.0, 6.0]]]), torch.tensor([0, 1]))
    assert probe.lo.tolist() == [[-2.0, 1.0], [7.0, -6.0], [math.inf, math.inf]]
    assert probe.hi.tolist() == [[3.0, 4.0], [9.0, 6.0], [-math.inf, -math.inf]]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rows_that_no_call_fell_into_take_the_range_of_all_others(momentum):
    model = jobs.pipeline().transformer
    act = Act(Int(8, False), True)
    job = jobs.run(stages(act, groups=8, branches=1), model)
    x, rows = inputs(model, job)
    with torch.no_grad():
        Ranges(momentum=momentum).run(job)
    assert 0 < len(set(rows.tolist())) < 8
    assert len(jobs.calls()) == len(set(rows.tolist()))  # one call a row: no average moves
    scale, zero = grid(x.amin(), x.amax(), act.grid)
    layer = model.get_submodule(LAYER)
    for r in set(range(8)) - set(rows.tolist()):
        torch.testing.assert_close(layer.get_buffer("act_scale")[r, 0], scale)
        assert torch.equal(layer.get_buffer("act_zero")[r, 0], zero)


def test_a_quantized_sample_uses_the_row_of_its_time():
    """With tables of its own, each call comes out as if the table had that row only."""
    model = jobs.pipeline().transformer
    job = jobs.run((*stages(Act(Int(4), True)), Ranges()), model)
    layer = model.get_submodule(LAYER)
    x = torch.randn(2, 5, 16)
    call = Call((torch.zeros(2, 1, 8, 8),), {"timestep": torch.tensor([999, 1]), "class_labels": torch.tensor([10, 3])})
    rows = job.rows(call)
    assert rows.tolist() == [5, 0]
    job.clock.tell(rows)
    both = layer(x)
    for i, r in enumerate(rows.tolist()):
        job.clock.tell(torch.tensor([r]))
        assert torch.equal(both[i : i + 1], layer(x[i : i + 1]))


def test_the_range_is_that_of_the_input_after_its_online_transforms():
    model = jobs.pipeline().transformer
    job = jobs.run((Rotate(), *stages(Act(Int(8, False), True), 1, 1)), model)
    layer = model.get_submodule(LAYER)
    x, _ = inputs(model, job)
    with torch.no_grad():
        seen = layer.transform(x)
        Ranges().run(job)
    assert (seen.amax() - x.amax()).abs() > 0.01
    scale, zero = grid(seen.amin(), seen.amax(), Int(8, False))
    layer = model.get_submodule(LAYER)
    torch.testing.assert_close(layer.get_buffer("act_scale")[0, 0], scale)
    assert torch.equal(layer.get_buffer("act_zero")[0, 0], zero)


def test_dynamic_activations_need_nothing():
    model = jobs.pipeline().transformer
    job = jobs.job(model)
    job.record = None  # would fail if it were called
    for stage in (Assign(weight=Int(8), act=Act(Int(8))), Rtn(), Ranges()):
        with torch.no_grad():
            stage.run(job)
    assert job.finish().rows == 1


def test_a_recipe_without_ranges_is_told_what_it_lacks():
    job = jobs.run(stages(Act(Int(8), True)), jobs.pipeline().transformer)
    with pytest.raises(BadRecipe, match="ranges"):
        job.finish()


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 1.5, float("nan")])
def test_momentum_lies_in_0_to_1(momentum):
    with pytest.raises(BadRecipe, match=r"ranges\.momentum"):
        jobs.run((*stages(Act(Int(8), True)), Ranges(momentum=momentum)), jobs.pipeline().transformer)


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.01, float("nan")])
def test_keep_lies_in_0_to_1(keep):
    with pytest.raises(BadRecipe, match=r"ranges\.keep"):
        jobs.run((*stages(Act(Int(8), True)), Ranges(keep=keep)), jobs.pipeline().transformer)
