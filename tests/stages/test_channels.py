"""Statistics of sites by range of the noise level."""

import re
from dataclasses import replace

import jobs
import pytest
import torch

from dither.errors import BadRecipe, BadValue
from dither.models import adapter_for
from dither.probes import RowsByTime
from dither.spec import Bits
from dither.stages import Job
from dither.stages.channels import Source, Times

SITE = "transformer_blocks.1.norm1"
PLAIN = Source("stage", data_free=False, calibrate=True, levels=4, rows=0)


def job_with(edges: tuple[float, ...], branches: int = 1) -> Job:
    job = jobs.job(jobs.pipeline().transformer)
    job.set_clock(edges, branches)
    return job


def sites(job: Job) -> list:
    return [s for s in job.adapter.sites(job.model) if s.fold is not None]


def inputs(job: Job, layer: str) -> list[tuple[float, torch.Tensor]]:
    """Noise level and input (T, K) of each sample of each call."""
    seen: list[tuple[float, torch.Tensor]] = []
    for call in job.calls:
        levels = job.adapter.noise_level(job.model, call).tolist()

        def keep(m, args, levels=levels):
            seen.extend(zip(levels, args[0], strict=True))

        handle = job.model.get_submodule(layer).register_forward_pre_hook(keep)
        with torch.no_grad():
            job.model(*call.args, **call.kwargs)
        handle.remove()
    return seen


def test_ranges_on_a_clock_of_the_same_edges_with_branches_and_with_more_groups():
    assert Times.cut(job_with((0.5,)), (0.5,)).select == (0, 1)
    assert Times.cut(job_with((0.5,), 2), (0.5,)).select == (0, 0, 1, 1)
    assert Times.cut(job_with((0.25, 0.5, 0.75)), (0.5,)).select == (0, 0, 1, 1)
    assert Times.cut(job_with((0.25, 0.5, 0.75)), (0.25, 0.75)).select == (0, 1, 1, 2)
    assert Times.cut(job_with((0.25,)), (0.25,)).bounds == ((0.0, 0.25), (0.25, 1.0))
    assert Times.whole(job_with((0.25, 0.5), 2)) == Times((), (0,) * 6)
    assert Times.off_clock((0.4,)).bounds == ((0.0, 0.4), (0.4, 1.0))


@torch.no_grad()
@pytest.mark.parametrize("clock", [(0.6,), (0.3, 0.6)])
def test_measured_peaks_are_those_of_each_range(clock):
    job = job_with(clock)
    found = PLAIN.gather(job, sites(job), Times.cut(job, (0.6,)))
    reader = "transformer_blocks.1.attn1.to_q"
    low, high = ([x for level, x in inputs(job, reader) if (level >= 0.6) is late] for late in (False, True))
    assert low
    assert high
    want = torch.stack([torch.cat(part).abs().amax(0) for part in (low, high)])
    torch.testing.assert_close(found[SITE].peaks, want)
    assert found[SITE].tokens == ()


@torch.no_grad()
@pytest.mark.parametrize("clock", [(), (0.3, 0.8)])
def test_ranges_off_the_clock_are_measured_alike_and_leave_it_as_it_was(clock):
    job = job_with(clock, 2)
    found = replace(PLAIN, rows=40).gather(job, sites(job), Times.off_clock((0.6,)))
    assert (job.time_edges, job.branches, job.clock.edges.tolist()) == (clock, 2, pytest.approx(clock))
    other = job_with((0.6,))
    want = replace(PLAIN, rows=40).gather(other, sites(other), Times.cut(other, (0.6,)))
    assert list(found) == list(want)
    for name, channels in found.items():
        assert torch.equal(channels.peaks, want[name].peaks)
        assert all(torch.equal(a, b) for a, b in zip(channels.tokens, want[name].tokens, strict=True))


@torch.no_grad()
def test_the_clock_tells_its_own_time_while_ranges_off_it_are_measured():
    """Tables that a layer has already are read by the clock's rows, not by the ranges."""
    job, told = job_with((0.3, 0.6), 2), []
    job.model.register_forward_pre_hook(lambda module, args: told.append(job.clock.row))
    PLAIN.gather(job, sites(job), Times.off_clock((0.4,)))
    want = [job.rows(call) for call in job.calls]
    assert all(torch.equal(a, b) for a, b in zip(told, want, strict=True))
    assert len({row for rows in told for row in rows.tolist()}) > 2


@torch.no_grad()
def test_ranges_that_no_call_reaches_are_left_out_if_they_may_be():
    """The tiny sampler asks at 0.249, 0.499, 0.749 and 0.999."""
    job = job_with(())
    found = replace(PLAIN, rows=20, gaps=True).gather(job, sites(job), Times.off_clock((0.1, 0.3, 0.4, 0.6)))[SITE]
    everything = inputs(job, "transformer_blocks.1.attn1.to_q")
    assert (found.peaks.shape, len(found.tokens)) == ((3, 16), 3)
    for i, (low, high) in enumerate(((0.1, 0.3), (0.4, 0.6), (0.6, 1.0))):
        own = torch.cat([x for level, x in everything if low <= level < high])
        torch.testing.assert_close(found.peaks[i], own.abs().amax(0))
        assert all(bool((own == token).all(1).any()) for token in found.tokens[i])


@torch.no_grad()
def test_measured_tokens_come_from_their_range():
    job = job_with((0.6,))
    found = replace(PLAIN, rows=40).gather(job, sites(job), Times.cut(job, (0.6,)))[SITE]
    everything = inputs(job, "transformer_blocks.1.attn1.to_q")
    for i, tokens in enumerate(found.tokens):
        assert 20 <= len(tokens) <= 40
        own = torch.cat([x for level, x in everything if (level >= 0.6) is bool(i)])
        assert all(bool((own == token).all(1).any()) for token in tokens)


def test_tokens_of_a_batch_of_mixed_ranges_go_to_their_own():
    probe = RowsByTime(2, limit=64, seed=0)
    x = torch.arange(4.0).view(4, 1, 1).expand(4, 3, 2)  # each sample holds its own number
    probe.update(x, torch.tensor([0, 1, 1, 0]))
    assert set(probe.parts[0].value.flatten().tolist()) == {0.0, 3.0}
    assert set(probe.parts[1].value.flatten().tolist()) == {1.0, 2.0}


def test_an_input_that_all_samples_share_goes_to_all_their_ranges():
    probe = RowsByTime(2, limit=64, seed=0)
    probe.update(torch.ones(3, 2), torch.tensor([0, 1]))
    assert [set(p.value.flatten().tolist()) for p in probe.parts] == [{1.0}, {1.0}]


@torch.no_grad()
def test_data_free_peaks_are_of_their_range_and_need_no_calls():
    def no_calls() -> tuple:
        raise AssertionError

    model = jobs.pipeline().transformer
    job = Job(model, adapter_for(model), Bits(4, 8), 0, no_calls)
    job.set_clock((0.5,), 1)
    source = Source("stage", data_free=True, calibrate=False, levels=8, rows=10)
    both = source.gather(job, sites(job), Times.cut(job, (0.5,)))
    whole = replace(source, levels=16).gather(job, sites(job), Times.whole(job))
    assert len(both) == 4  # the attention outputs are left out
    assert [t.shape for t in both[SITE].tokens] == [(10, 16), (10, 16)]
    torch.testing.assert_close(both[SITE].peaks.amax(0), whole[SITE].peaks[0])
    assert not torch.allclose(both[SITE].peaks[0], both[SITE].peaks[1])


def test_a_range_that_no_call_reaches_is_refused():
    job = job_with((0.05,))
    with pytest.raises(BadValue, match=re.escape("no calibration call has a noise level from 0 to 0.05")):
        PLAIN.gather(job, sites(job), Times.cut(job, (0.05,)))


@pytest.mark.parametrize(("change", "message"), [({"levels": 0}, "levels 0"), ({"levels": 1001}, "levels 1001")])
def test_fields_that_make_no_sense_are_named(change, message):
    with pytest.raises(BadRecipe, match=rf"stage\.{message}"):
        replace(PLAIN, **change).check()
    with pytest.raises(BadRecipe, match=r"stage\.calibrate false"):
        replace(PLAIN, calibrate=False).check()
