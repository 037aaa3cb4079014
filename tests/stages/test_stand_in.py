"""A stand-in computes what the finished layer will."""

import jobs
import pytest
import torch

from dither.models.base import linear_at
from dither.numerics import dynamic_grid
from dither.spec import Act, Int
from dither.stages import Assign, Ranges, Rotate, Rtn, Smooth, SplitLowRank
from dither.stages.building import dense_of
from dither.stages.learned_steps import LearnedSteps
from dither.stages.soft_rounding import SoftRounding
from dither.stages.stand_in import StandIn

LAYER = "transformer_blocks.1.ff.net.2"
PLAIN = Assign(weight=Int(4, False), act=Act(Int(8, False)), adaln=Int(4))
STATIC = Assign(
    weight=Int(4, False, 8), act=Act(Int(6, False, 8), static=True), adaln=Int(4), time_groups=3, branches=2
)


def standin(job) -> StandIn:
    old, spec = linear_at(job.model, LAYER), job.specs[LAYER]
    w = dense_of(old)
    assert torch.equal(w, job.dense(LAYER))
    return StandIn(old, spec, SoftRounding(w, *dynamic_grid(w, spec.weight), spec.weight), None)


CASES = {
    "plain": (PLAIN,),
    "weights alone": (Assign(weight=Int(4, False)),),
    "transformed": (Smooth(online=True), Rotate(), PLAIN),
    "branched": (Smooth(online=True), PLAIN, SplitLowRank(rank=2)),
    "branched in full precision": (PLAIN, SplitLowRank(rank=2, bits=None)),
    "static": (Rotate(), STATIC),
}


@pytest.mark.parametrize("stages", CASES.values(), ids=list(CASES))
def test_with_its_choices_made_it_gives_what_the_committed_layer_gives(stages):
    job = jobs.run(stages, jobs.pipeline().transformer)
    made = standin(job).eval()
    before = linear_at(job.model, LAYER)
    made.decide(made.rounding.nearest)
    with torch.no_grad():
        for stage in (Rtn(), Ranges()):
            stage.run(job)
    layer = linear_at(job.model, LAYER)
    if job.specs[LAYER].act is not None and job.specs[LAYER].act.static:
        made.steps = LearnedSteps(layer.stored("act"), job.specs[LAYER].act.grid, job.clock)
    job.clock.tell(torch.arange(4) % (6 if job.branches > 1 else 1))
    x = torch.randn(4, 7, layer.in_features, generator=torch.Generator().manual_seed(0)) * 2
    with torch.no_grad():
        want = layer(x)
        torch.testing.assert_close(made(x), want, rtol=1e-4, atol=1e-5)
        assert float((before(x) - want).abs().max()) > 1e-3  # rounding shows
    x.requires_grad_()
    torch.testing.assert_close(made(x).detach(), want, rtol=1e-4, atol=1e-5)


def test_it_begins_in_full_precision_with_inputs_as_they_are_if_asked():
    job = jobs.run((PLAIN,), jobs.pipeline().transformer)
    made, layer = standin(job), linear_at(job.model, LAYER)
    x = torch.randn(4, 7, layer.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.equal(made(x), layer(x))
        made.rounds_inputs = False
        assert torch.equal(made(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_in_and_out(dtype):
    job = jobs.run((PLAIN,), jobs.pipeline().transformer)
    made, layer = standin(job).to(dtype), linear_at(job.model, LAYER)
    x = torch.randn(4, 7, layer.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = made(x.to(dtype))
        assert got.dtype == dtype
        assert jobs.relative_error(got.float(), layer.float()(x)) < 0.05


def test_gradients_reach_choices_and_inputs():
    job = jobs.run((PLAIN,), jobs.pipeline().transformer)
    made = standin(job)
    x = torch.randn(4, 7, made.old.in_features, generator=torch.Generator().manual_seed(0)).requires_grad_()
    made.weight = made.rounding.soft(made.rounding.choice())
    made(x).square().sum().backward()
    assert made.rounding.alpha.grad.abs().max() > 0
    assert x.grad.abs().max() > 0
