"""Recording, streaming statistics, and the walk."""

from collections import Counter

import jobs
import pytest
import torch
from torch import nn

from dither.calibrate import AbsMax, MinMax, RowSample, lockstep, observe, record, replay, tapped, walk
from dither.errors import BadModel, BadValue
from dither.models import Call, adapter_for


class Count(nn.Module):
    """Its calls are numbered by their argument."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, extra: object = None) -> torch.Tensor:
        return self.linear(x)


def numbers(calls: tuple[Call, ...]) -> list[int]:
    return [int(c.args[0][0, 0]) for c in calls]


def feed(model: nn.Module, n: int) -> None:
    for i in range(n):
        model(torch.full((2, 3), float(i)))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


# --- record


def test_everything_is_kept_below_the_limit():
    model = Count()
    assert numbers(record(model, lambda: feed(model, 5), limit=5)) == [0, 1, 2, 3, 4]


def test_the_reservoir_is_bounded_seeded_and_in_order():
    model = Count()
    first = numbers(record(model, lambda: feed(model, 100), limit=8, seed=1))
    assert len(first) == 8
    assert first == sorted(set(first))
    assert first == numbers(record(model, lambda: feed(model, 100), limit=8, seed=1))
    assert first != numbers(record(model, lambda: feed(model, 100), limit=8, seed=2))


def test_the_reservoir_is_uniform():
    model, seen = Count(), Counter()
    for seed in range(150):
        seen.update(numbers(record(model, lambda: feed(model, 20), limit=5, seed=seed)))
    # 150 draws of a quarter: mean 37.5, standard deviation 5.3
    assert min(seen.values()) > 18
    assert max(seen.values()) < 60
    assert len(seen) == 20


def test_recorded_tensors_are_copies_without_gradients_in_any_nest():
    model, x = Count(), torch.ones(2, 3, requires_grad=True)
    state = {"a": [torch.ones(1)], "b": (torch.zeros(1), "text")}
    (call,) = record(model, lambda: model(x, extra=state))
    state["a"][0] += 1
    with torch.no_grad():
        x += 1
    assert call.args[0].tolist() == [[1.0] * 3] * 2
    assert not call.args[0].requires_grad
    assert call.kwargs["extra"]["a"][0].item() == 1
    assert call.kwargs["extra"]["b"][1] == "text"


def test_a_sampler_that_never_calls_the_model_is_an_error():
    with pytest.raises(BadModel, match="never called"):
        record(Count(), lambda: None)


@pytest.mark.parametrize("limit", [0, -1])
def test_nothing_kept_is_an_error(limit):
    with pytest.raises(BadValue, match=f"{limit} denoiser calls"):
        record(Count(), lambda: None, limit=limit)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_names_the_argument_and_the_call(bad):
    model = Count()

    def run() -> None:
        model(torch.zeros(1, 3))
        model(torch.zeros(1, 3), extra=torch.tensor([bad]))

    with pytest.raises(BadValue, match="'extra' of denoiser call 1"):
        record(model, run)
    assert hooks(model) == 0


def test_hooks_are_gone_after_an_exception():
    model = Count()

    def run() -> None:
        model(torch.zeros(1, 3))
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        record(model, run)
    assert hooks(model) == 0
    replay_me = record(model, lambda: feed(model, 2))
    model.forward = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        observe(model, replay_me, {"linear": (AbsMax(3),)}, [torch.zeros(2).long()] * 2, lambda rows: None)
    assert hooks(model) == 0


def test_a_pipeline_shows_all_classes_and_the_null_class():
    calls = jobs.calls()
    assert len(calls) == 4
    adapter, model = adapter_for(jobs.pipeline().transformer), jobs.pipeline().transformer
    for call in calls:
        assert set(call.kwargs["class_labels"].tolist()) == set(range(11))  # 10 is the null class
        assert adapter.branch(model, call).tolist() == [0] * 10 + [1] * 10
    levels = [float(adapter.noise_level(model, c)[0]) for c in calls]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > 0.99


def test_replay_gives_what_the_sampler_saw():
    pipe, seen = jobs.pipeline(), []
    handle = pipe.transformer.register_forward_hook(lambda m, a, y: seen.append(y[0]))
    calls = record(pipe.transformer, lambda: jobs.sample(pipe))
    handle.remove()
    for call, want in zip(calls, seen, strict=True):
        assert torch.equal(replay(pipe.transformer, call)[0], want)


# --- observe


def observed(name: str, *probes) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Feed probes; also the inputs (B, T, K) and rows (B,) that they must have seen."""
    model, truth = jobs.pipeline().transformer, []
    job = jobs.job(model)
    job.set_clock((0.4, 0.8), 2)
    handle = model.get_submodule(name).register_forward_pre_hook(lambda m, a: truth.append((a[0], job.clock.row)))
    job.observe("", {name: probes})
    handle.remove()
    return truth


BLOCK = "transformer_blocks.1."


def test_absmax_and_minmax_are_the_direct_statistics():
    peak, ends, timed, timed_ends = AbsMax(16), MinMax(16), AbsMax(16, 6), MinMax(16, 6)
    truth = observed(BLOCK + "ff.net.0.proj", peak, ends, timed, timed_ends)
    x = torch.cat([t for t, _ in truth])  # (calls * B, T, K)
    rows = torch.cat([r for _, r in truth])
    assert set(rows.tolist()) == set(range(6))
    assert torch.equal(peak.value[0], x.abs().amax((0, 1)))
    assert torch.equal(ends.lo[0], x.amin((0, 1)))
    assert torch.equal(ends.hi[0], x.amax((0, 1)))
    for r in range(6):
        mine = x[rows == r]
        assert torch.equal(timed.value[r], mine.abs().amax((0, 1)))
        assert torch.equal(timed_ends.lo[r], mine.amin((0, 1)))
        assert torch.equal(timed_ends.hi[r], mine.amax((0, 1)))


def test_rows_that_no_call_falls_into_stay_empty():
    probe = MinMax(3, rows=3)
    probe.update(torch.ones(2, 5, 3), torch.tensor([0, 2]))
    assert torch.isinf(probe.lo[1]).all()
    assert probe.hi[[0, 2]].tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("shape", [(4, 7, 3), (4, 3), (8, 7, 3), (4, 2, 7, 3)])
def test_an_input_may_fold_frames_into_its_batch(shape):
    x = torch.randn(shape)
    probe, rows = AbsMax(3, rows=4), torch.arange(4)
    probe.update(x, rows)
    assert torch.equal(probe.value, x.reshape(4, -1, 3).abs().amax(1))


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 5, 3)])
def test_an_input_without_a_batch_belongs_to_every_sample(shape):
    x, probe = torch.randn(shape), AbsMax(3, rows=2)
    probe.update(x, torch.tensor([0, 1]))
    assert torch.equal(probe.value, x.reshape(-1, 3).abs().amax(0).expand(2, 3))


def test_row_sample_is_bounded_and_takes_from_all_calls():
    sample = RowSample(limit=100, share=16, seed=0)
    for i in range(60):
        sample.update(torch.full((2, 32, 4), float(i)), torch.zeros(2).long())
        assert sample.value.shape[0] <= 100
    calls = sample.value[:, 0].unique()
    assert calls.min() < 20
    assert calls.max() > 50
    again = RowSample(limit=100, share=16, seed=0)
    for i in range(60):
        again.update(torch.full((2, 32, 4), float(i)), torch.zeros(2).long())
    assert torch.equal(again.value, sample.value)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_row_sample_never_runs_empty(limit):
    sample = RowSample(limit=limit, share=16)
    for _ in range(4):
        sample.update(torch.randn(2, 9, 3), torch.zeros(2).long())
        assert 1 <= sample.value.shape[0] <= limit


def test_row_sample_holds_whole_rows():
    sample = RowSample(limit=64, share=8)
    (x, _), *_ = observed(BLOCK + "attn1.to_q", sample)
    everything = {tuple(row.tolist()) for t, _ in observed(BLOCK + "attn1.to_q") for row in t.flatten(0, 1)}
    assert {tuple(row.tolist()) for row in sample.value} <= everything
    assert sample.value.shape[1] == x.shape[-1]


def test_nan_inside_names_the_layer():
    model = jobs.pipeline().transformer
    model.transformer_blocks[0].attn1.to_out[0].bias.data[0] = torch.nan
    with pytest.raises(BadValue, match=r"'transformer_blocks\.0\.ff\.net\.0\.proj' holds NaN"):
        jobs.job(model).observe("", {"transformer_blocks.0.ff.net.0.proj": (AbsMax(16),)})
    assert hooks(model) == 0


def test_a_layer_that_no_call_reaches_is_named():
    model = Count()
    calls = record(model, lambda: feed(model, 1))
    with pytest.raises(BadModel, match="'unused'"):
        observe(model, calls, {"unused": (AbsMax(3),)}, [torch.zeros(2).long()], lambda rows: None)


# --- walk


def block_inputs(model: nn.Module) -> dict[str, list[torch.Tensor]]:
    seen: dict[str, list[torch.Tensor]] = {}
    handles = [
        b.register_forward_pre_hook(lambda m, a, k, i=i: seen.setdefault(str(i), []).append(a[0]), with_kwargs=True)
        for i, b in enumerate(model.transformer_blocks)
    ]
    jobs.outputs(model)
    for handle in handles:
        handle.remove()
    return seen


def test_walk_gives_each_block_exactly_what_the_model_gives():
    model = jobs.pipeline().transformer
    want = block_inputs(model)
    names = []
    for i, step in enumerate(jobs.job(model).walk()):
        names.append(step.name)
        assert step.module is model.transformer_blocks[i]
        assert len(step.calls) == len(jobs.calls())
        assert all(torch.equal(c.args[0], w) for c, w in zip(step.calls, want[str(i)], strict=True))
    assert hooks(model) == 0


def test_walk_sees_what_was_changed_before():
    model, inputs = jobs.pipeline().transformer, []
    for i, step in enumerate(jobs.job(model).walk()):
        inputs.append(step.calls)
        if i == 0:
            step.module.ff.net[2].weight.data *= 2
    changed = block_inputs(model)
    assert all(torch.equal(c.args[0], w) for c, w in zip(inputs[1], changed["1"], strict=True))
    unchanged = block_inputs(jobs.pipeline().transformer)
    assert not torch.equal(changed["1"][0], unchanged["1"][0])


def test_walk_sees_a_replaced_block():
    model, seen = jobs.pipeline().transformer, []

    class Zero(nn.Module):
        def forward(self, x, **kwargs):
            return torch.zeros_like(x)

    for i, step in enumerate(jobs.job(model).walk()):
        seen.append(step.calls[0].args[0])
        if i == 0:
            model.transformer_blocks[0] = Zero()
    assert seen[1].abs().max() == 0


class Chain(nn.Module):
    """Blocks between which something happens that no adapter can know."""

    def __init__(self, between: float, repeat: int = 1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))
        self.between, self.repeat = between, repeat

    def forward(self, x):
        x = self.blocks[0](x)
        for _ in range(self.repeat):
            x = self.blocks[1](x + self.between)
        return x


def walked(model: nn.Module) -> list:
    calls = record(model, lambda: model(torch.ones(2, 4)))
    return list(walk(model, adapter_for(model), calls, [torch.zeros(2).long()], lambda rows: None))


def test_walk_refuses_blocks_that_do_not_chain():
    assert len(walked(Chain(0.0))) == 2
    with pytest.raises(BadModel, match=r"'blocks\.0' is not all that block 'blocks\.1' receives"):
        walked(Chain(1.0))
    with pytest.raises(BadModel, match="cannot be walked"):
        walked(Chain(0.0, repeat=2))


def test_walk_refuses_a_model_without_blocks():
    with pytest.raises(BadModel, match="no blocks"):
        walked(nn.Sequential(nn.Linear(4, 4)))


def test_walk_tells_the_time_of_each_call():
    model, told = jobs.pipeline(num_layers=3).transformer, []
    job = jobs.job(model)
    job.set_clock((0.5,), 1)
    tell = job.clock.tell
    job.clock.tell = lambda rows: (told.append(rows.tolist()), tell(rows))
    list(job.walk())
    want = [job.rows(c).tolist() for c in jobs.calls()]
    assert told == [want[0], *want * 3]  # the check, what the first block receives, and twice onward


# --- lockstep, tapped


def pairs(model: nn.Module, job=None):
    job = job or jobs.job(model)
    calls = jobs.calls()
    return lockstep(model, job.adapter, calls, [job.rows(c) for c in calls], job.clock.tell)


def block_outputs(model: nn.Module) -> list[list[torch.Tensor]]:
    """What each block gives in each call, as hooks of the whole model see it."""
    seen: list[list[torch.Tensor]] = [[] for _ in model.transformer_blocks]
    handles = [
        block.register_forward_hook(lambda m, a, y, into=into: into.append(y))
        for block, into in zip(model.transformer_blocks, seen, strict=True)
    ]
    jobs.outputs(model)
    for handle in handles:
        handle.remove()
    return seen


def test_lockstep_gives_what_full_precision_receives_and_answers_whatever_is_changed():
    model = jobs.pipeline(num_layers=3).transformer
    inputs, outputs = block_inputs(model), block_outputs(model)
    changed = []
    for i, step in enumerate(pairs(model)):
        assert all(torch.equal(c.args[0], w) for c, w in zip(step.exact, inputs[str(i)], strict=True))
        assert all(torch.equal(y, w) for y, w in zip(step.targets, outputs[i], strict=True))
        changed.append(step.calls[0].args[0].clone())
        step.module.ff.net[2].weight.data *= 2
    seen = block_inputs(model)  # of the changed model: what the other stream received
    assert all(torch.equal(x, seen[str(i)][0]) for i, x in enumerate(changed))
    assert not torch.equal(changed[1], inputs["1"][0])
    assert hooks(model) == 0


def test_lockstep_tells_both_streams_the_time():
    model, told = jobs.pipeline().transformer, []
    job = jobs.job(model)
    job.set_clock((0.5,), 1)
    tell = job.clock.tell
    job.clock.tell = lambda rows: (told.append(rows.tolist()), tell(rows))
    list(pairs(model, job))
    want = [job.rows(c).tolist() for c in jobs.calls()]
    assert told == [want[0], *want * 4]  # as of a walk with one step onward, and targets of two blocks


def test_lockstep_beside_a_copy_takes_targets_from_it_whatever_the_model_is_by_then():
    model, plain = jobs.pipeline().transformer, jobs.pipeline().transformer
    inputs, outputs = block_inputs(plain), block_outputs(plain)
    for parameter in model.parameters():
        parameter.data *= 1.1  # embedders too
    job = jobs.job(model)
    rows = [job.rows(c) for c in jobs.calls()]
    changed = block_inputs(model)
    for i, step in enumerate(lockstep(model, job.adapter, jobs.calls(), rows, job.clock.tell, plain)):
        assert all(torch.equal(c.args[0], w) for c, w in zip(step.exact, inputs[str(i)], strict=True))
        assert all(torch.equal(y, w) for y, w in zip(step.targets, outputs[i], strict=True))
        assert all(torch.equal(c.args[0], w) for c, w in zip(step.calls, changed[str(i)], strict=True))
        assert not torch.equal(step.exact[0].args[0], step.calls[0].args[0])


def test_tapped_is_what_hooks_see():
    model = jobs.pipeline().transformer
    job = jobs.job(model)
    calls = jobs.calls()
    received, given = tapped(model, BLOCK + "norm1.linear", calls, [job.rows(c) for c in calls], job.clock.tell)
    linear = model.get_submodule(BLOCK + "norm1.linear")
    assert len(received) == len(given) == len(calls)
    with torch.no_grad():
        assert all(torch.equal(linear(c.args[0]), y) for c, y in zip(received, given, strict=True))
    assert hooks(model) == 0


def test_what_is_reached_twice_or_never_cannot_be_tapped():
    model = Chain(0.0, repeat=2)
    calls, rows = record(model, lambda: model(torch.ones(2, 4))), [torch.zeros(2).long()]
    with pytest.raises(BadModel, match=r"reaches 'blocks\.1' 2 times, not once"):
        tapped(model, "blocks.1", calls, rows, lambda _: None)
    counting = Count()
    calls = record(counting, lambda: feed(counting, 1))
    with pytest.raises(BadModel, match="reaches 'unused' 0 times"):
        tapped(counting, "unused", calls, rows, lambda _: None)
    assert hooks(counting) == 0
