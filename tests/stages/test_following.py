"""Trajectories: whose latents they follow, what counts as an error, and that the model is as before afterwards."""

import copy
import types

import jobs
import pytest
import torch

from dither.errors import BadModel, BadRecipe, BadValue
from dither.stages.following import Course


def job_of(pipe):
    job = jobs.job(pipe.transformer)
    job.drawn = []

    def draw(what):
        job.drawn.append(what)
        jobs.sample(pipe, tuple(range(what.samples)), what.steps)

    job.draw = draw
    return job


def changed(pipe):
    """A model that has lost something, and the one that has not."""
    exact = copy.deepcopy(pipe.transformer)
    with torch.no_grad():
        pipe.transformer.transformer_blocks[1].ff.net[2].weight.mul_(0.5)
    return exact


def latents(model, run) -> list[torch.Tensor]:
    """What a model was called with."""
    seen = []

    def keep(module, args, kwargs):
        seen.append((*args, *kwargs.values())[0].clone())

    handle = model.register_forward_pre_hook(keep, with_kwargs=True)
    run()
    handle.remove()
    return seen


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_both_models_see_the_latents_of_the_one_that_leads(own):
    pipe = jobs.pipeline()
    exact, job = changed(pipe), job_of(pipe)
    course = Course("test", 3, 4, 1.5, own=own)
    seen = latents(exact, lambda: course.follow(job, exact, 0, lambda error: None))
    assert [(w.number, w.samples, w.steps, w.guidance) for w in job.drawn] == [(0, 3, 4, 1.5)]
    leader = jobs.pipeline() if own == 0 else pipe
    want = latents(leader.transformer, lambda: jobs.sample(leader, (0, 1, 2), 4))
    assert len(seen) == len(want) == 4
    for a, b in zip(seen, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_share_of_the_trajectories_is_the_models_own():
    pipe = jobs.pipeline()
    exact, job = changed(pipe), job_of(pipe)
    want = latents(pipe.transformer, lambda: jobs.sample(pipe, (0, 1, 2), 4))[-1]
    course, own = Course("test", 3, 4, 1.5, own=0.5), []
    for number in range(4):
        seen = latents(exact, lambda n=number: course.follow(job, exact, n, lambda error: None))
        own.append(torch.allclose(seen[-1], want, rtol=1e-4, atol=1e-5))
    assert own == [False, True, False, True]


def test_the_error_is_the_mean_over_blocks():
    pipe = jobs.pipeline()
    exact, job, errors = changed(pipe), job_of(pipe), []
    Course("test", 2, 3, 1.5).follow(job, exact, 0, lambda error: errors.append(float(error.detach())))
    call, outs = [], {}
    for side, model in (("exact", exact), ("own", pipe.transformer)):
        for i, block in enumerate(model.transformer_blocks):
            block.register_forward_hook(lambda m, args, y, key=(side, i): outs.update({key: y.detach()}))
    exact.register_forward_pre_hook(lambda m, args, kwargs: call.append((args, kwargs)), with_kwargs=True)
    Course("test", 2, 3, 1.5).follow(job, exact, 0, lambda error: None)
    gaps = [(outs["own", i] - outs["exact", i]).square().mean() for i in range(2)]
    assert errors[-1] == pytest.approx(float(sum(gaps) / 2), rel=1e-4)
    shares = [g / outs["exact", i].var() for i, g in enumerate(gaps)]
    relative = []
    Course("test", 2, 3, 1.5, relative=True).follow(job, exact, 0, lambda error: relative.append(float(error.detach())))
    assert relative[-1] == pytest.approx(float(sum(shares) / 2), rel=1e-4)
    with_output, course = [], Course("test", 2, 3, 1.5, output=2.0, relative=True)
    course.follow(job, exact, 0, lambda error: with_output.append(float(error.detach())))
    assert with_output[-1] > relative[-1]


def test_an_unchanged_model_has_no_error_and_gradients_reach_it_otherwise():
    pipe = jobs.pipeline()
    exact, job, errors = copy.deepcopy(pipe.transformer), job_of(pipe), []
    Course("test", 2, 2, 1.5, output=1.0).follow(job, exact, 0, lambda error: errors.append(float(error.detach())))
    assert max(errors) < 1e-10
    exact = changed(pipe)
    with torch.no_grad():  # as in a job
        Course("test", 2, 2, 1.5).follow(job, exact, 0, lambda error: error.backward())
    assert pipe.transformer.transformer_blocks[0].norm1.linear.weight.grad.abs().max() > 0


def test_the_model_is_as_before_also_after_an_error():
    pipe = jobs.pipeline()
    exact, job = changed(pipe), job_of(pipe)

    def fail(error):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Course("test", 2, 2, 1.5).follow(job, exact, 0, fail)
    assert "forward" not in vars(pipe.transformer)
    own = types.MethodType(type(pipe.transformer).forward, pipe.transformer)
    pipe.transformer.forward = own  # as accelerate does
    Course("test", 2, 2, 1.5).follow(job, exact, 0, lambda error: None)
    assert vars(pipe.transformer)["forward"] is own
    assert not any(m._forward_hooks for m in (*exact.modules(), *pipe.transformer.modules()))


def test_nan_is_refused():
    pipe = jobs.pipeline()
    exact, job = changed(pipe), job_of(pipe)
    with torch.no_grad():
        pipe.transformer.transformer_blocks[0].ff.net[2].bias.fill_(torch.nan)
    with pytest.raises(BadValue, match="test: the error is nan in trajectory 3"):
        Course("test", 2, 2, 1.5).follow(job, exact, 3, lambda error: None)


def test_a_model_without_blocks_has_only_its_answer():
    pipe = jobs.pipeline()
    exact, job = changed(pipe), job_of(pipe)
    of = job.adapter
    job.adapter = types.SimpleNamespace(blocks=lambda m: (), noise_level=of.noise_level, branch=of.branch)
    with pytest.raises(BadModel, match=r"has no blocks to compare: set test\.output"):
        Course("test", 2, 2, 1.5).follow(job, exact, 0, lambda error: None)
    errors = []
    Course("test", 2, 2, 1.5, output=1.0).follow(job, exact, 0, lambda error: errors.append(float(error.detach())))
    assert min(errors) > 0


@pytest.mark.parametrize(
    ("field", "value"), [("samples", 0), ("steps", 0), ("guidance", -1.0), ("own", 1.5), ("output", -1.0)]
)
def test_fields_that_make_no_sense(field, value):
    values = {"samples": 2, "steps": 2, "guidance": 1.5, field: value}
    with pytest.raises(BadRecipe, match=rf"test\.{field} "):
        Course("test", **values).check()
