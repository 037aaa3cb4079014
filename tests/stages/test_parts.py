"""Parts in order, and what each is trained on."""

import dataclasses

import jobs
import pytest
import torch

from dither.models import Call
from dither.models.base import linear_at
from dither.spec import Act, Int
from dither.stages import Assign
from dither.stages.parts import full_precision, parts_of, some_calls, walked

ASSIGN = Assign(weight=Int(4), act=Act(Int(8)), adaln=Int(4))
BLOCK = "transformer_blocks.{}"


def started(model=None):
    return jobs.run((ASSIGN,), model or jobs.pipeline().transformer)


def all_of(job, lacking=lambda part: True, blocks=True, change=lambda part: None, exact=None):
    """Every part, with samples or None, after which it is changed."""
    found = []
    with torch.no_grad():
        parts = parts_of(job, list(job.specs), blocks)
        for part, samples in walked(job, parts, exact or job.model, lambda: some_calls(job, job.calls, 1000), lacking):
            # a walk's calls become those of the next block
            found.append((part, samples and dataclasses.replace(samples, calls=list(samples.calls))))
            change(part)
    return found


def test_blocks_in_order_then_what_lies_outside():
    job = started()
    job.specs["proj_out_1"] = job.specs[BLOCK.format(0) + ".ff.net.2"]
    blocks = parts_of(job, list(job.specs), blocks=True)
    assert [p.name for p in blocks] == [BLOCK.format(0), BLOCK.format(1), "proj_out_1"]
    assert [p.block for p in blocks] == [BLOCK.format(0), BLOCK.format(1), ""]
    alone = parts_of(job, list(job.specs), blocks=False)
    assert [p.name for p in alone] == [n for n in job.layers if n in job.specs]
    assert all(p.layers == (p.name,) for p in alone)
    for found in (blocks, alone):
        assert sorted(n for p in found for n in p.layers) == sorted(job.specs)


def test_a_block_without_chosen_layers_is_no_part():
    job = started()
    inside = [n for n in job.specs if n.startswith(BLOCK.format(1))]
    assert [p.name for p in parts_of(job, inside, blocks=True)] == [BLOCK.format(1)]


def damage(job):
    """Double a part's weights, as coarse rounding would change them."""

    def change(part) -> None:
        for name in part.layers:
            linear_at(job.model, name).weight.data *= 2

    return change


def test_targets_of_blocks_are_full_precision_and_inputs_those_of_changed_blocks():
    job, plain = started(), jobs.pipeline().transformer
    (first, second) = (samples for _, samples in all_of(job, change=damage(job)))
    seen, changed = {}, {}
    for into, model in ((seen, plain), (changed, job.model)):
        for i, block in enumerate(model.transformer_blocks):
            block.register_forward_hook(lambda m, a, y, i=i, into=into: into.setdefault(i, []).append((a[0], y)))
        jobs.outputs(model)
    for i, samples in enumerate((first, second)):
        assert len(samples.calls) == len(jobs.calls())
        for (_, y), (x, _), call, target in zip(seen[i], changed[i], samples.calls, samples.targets, strict=True):
            assert torch.equal(target, y)
            assert torch.equal(call.args[0], x)
    assert not torch.equal(second.calls[0].args[0], seen[1][0][0])


def test_linears_one_by_one_see_what_changed_before_them_inside_a_block():
    job, plain = started(), jobs.pipeline().transformer
    out, fc2 = (BLOCK.format(0) + n for n in (".attn1.to_out.0", ".ff.net.2"))
    found = {part.name: samples for part, samples in all_of(job, blocks=False, change=damage(job))}
    exact, changed = {}, {}
    for into, model in ((exact, plain), (changed, job.model)):
        for name in (out, fc2):
            model.get_submodule(name).register_forward_hook(
                lambda m, a, y, name=name, into=into: into.setdefault(name, []).append((a[0], y))
            )
        jobs.outputs(model)
    for name in (out, fc2):
        samples = found[name]
        assert torch.equal(samples.targets[0], exact[name][0][1])
        torch.testing.assert_close(samples.calls[0].args[0], changed[name][0][0])
        assert not torch.allclose(samples.calls[0].args[0], exact[name][0][0])


@pytest.mark.parametrize("apart", [False, True])
def test_linears_outside_answer_with_their_own_full_precision(apart):
    job = started()
    exact = full_precision(job, job.model) if apart else job.model
    job.specs = {"proj_out_1": job.specs[BLOCK.format(0) + ".ff.net.2"]}
    weight = linear_at(job.model, "proj_out_1").weight.data.clone()
    if apart:
        linear_at(job.model, "proj_out_1").weight.data *= 2
    ((part, samples),) = all_of(job, exact=exact)
    assert part.name == "proj_out_1"
    bias = linear_at(job.model, "proj_out_1").bias
    for call, target in zip(samples.calls, samples.targets, strict=True):
        torch.testing.assert_close(target, torch.nn.functional.linear(call.args[0], weight, bias).detach())


def test_a_copy_stays_exact_and_keeps_the_clock():
    job = jobs.run((ASSIGN,), jobs.pipeline().transformer)
    exact = full_precision(job, job.model)
    damage(job)(parts_of(job, list(job.specs), blocks=True)[0])
    plain = jobs.pipeline().transformer
    assert jobs.same_tensors(exact, plain)
    assert not jobs.same_tensors(job.model, plain)
    for _ in range(2):  # the model is changed from the start, and targets come from the copy
        samples = all_of(job, exact=exact)[1][1]
        seen = []
        handle = plain.transformer_blocks[1].register_forward_hook(lambda m, a, y, into=seen: into.append(y))
        jobs.outputs(plain)
        handle.remove()
        assert all(torch.equal(a, b) for a, b in zip(samples.targets, seen, strict=True))


def test_what_is_not_lacking_has_no_samples_and_nothing_is_drawn_for_it():
    job = started()
    assert [s for _, s in all_of(job, lacking=lambda part: False)] == [None, None]
    job.record = None  # would fail if it were called
    job._calls = None
    all_of(job, lacking=lambda part: False)
    job = started()
    second = all_of(job, lacking=lambda part: part.name == BLOCK.format(1))
    assert second[0][1] is None
    assert second[1][1] is not None


def test_the_walk_ends_where_nothing_more_is_lacking(monkeypatch):
    job = started(jobs.pipeline(num_layers=3).transformer)
    ran = []
    job.model.transformer_blocks[2].register_forward_hook(lambda *_: ran.append(1))
    done = []

    def lacking(part):
        return not done and part.name == BLOCK.format(0)

    all_of(job, lacking=lacking, change=done.append)
    assert len(ran) == 1  # in the check of how blocks follow each other


@pytest.mark.parametrize("limit", [1, 3, 8, 50, 1000])
def test_samples_are_limited_and_spread_over_the_calls(limit):
    job = started()
    job.set_clock((0.3, 0.7), 2)
    drawn = some_calls(job, job.calls, limit)
    calls, rows = drawn.calls, drawn.rows
    sizes = [len(r) for r in rows]
    assert sum(sizes) <= limit
    assert len(set(sizes)) == 1
    assert sizes[0] == min(20, limit // len(calls))
    assert len(calls) == (4 if limit >= 4 else {1: 1, 3: 2}[limit])
    for call, now in zip(calls, rows, strict=True):
        assert torch.equal(job.rows(call), now)
        assert isinstance(call, Call)
        whole = next(c for c in job.calls if torch.equal(c.kwargs["timestep"][:1], call.kwargs["timestep"][:1]))
        there = {tuple(x.flatten().tolist()) for x in whole.args[0]}
        mine = {tuple(x.flatten().tolist()) for x in call.args[0]}
        assert len(mine) >= len(now) // 2  # conditional and unconditional rows share their latents
        assert mine <= there
    again = some_calls(job, job.calls, limit).calls
    assert torch.equal(again[0].args[0], calls[0].args[0])
