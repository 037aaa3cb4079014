"""The incoherence of a layer's input, by quarter of the noise level."""

import math

import jobs
import pytest
import torch

from dither.errors import BadRecipe
from dither.spec import Rotation
from dither.stages import Smooth
from dither.stages.incoherence import Incoherence, measure, named

NAME = "transformer_blocks.0.attn1.to_q"
FC2 = "transformer_blocks.0.ff.net.2"


def test_it_is_the_mean_over_tokens_of_max_over_mean():
    probe = Incoherence()
    probe.update(torch.tensor([[[1.0, -1.0], [3.0, 1.0]], [[0.0, 5.0], [0.0, 0.0]]]), torch.tensor([0, 2]))
    assert probe.by_time == [1.25, 1.5]  # (1 + 1.5) / 2; (2 + 1) / 2, a token of zeros is even
    probe.update(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    assert probe.by_time == [1.5, 1.5]


def test_an_input_that_belongs_to_every_sample_counts_for_each():
    probe = Incoherence()
    probe.update(torch.tensor([3.0, 1.0]), torch.tensor([1, 3]))
    assert probe.by_time == [1.5, 1.5]


def test_a_rotation_leaves_what_normal_channels_have():
    x = torch.randn(2, 100, 64, generator=torch.Generator().manual_seed(0))
    x[..., 5] *= 100
    before, after = Incoherence(), Incoherence(Rotation(64))
    for probe in (before, after):
        probe.update(x, torch.tensor([0, 0]))
    assert before.by_time[0] > 20
    assert after.by_time[0] < math.sqrt(math.pi * math.log(64))


def test_calls_fall_into_quarters_and_layers_keep_their_own_clock():
    job = jobs.job(jobs.pipeline().transformer)
    job.set_clock((0.5,), 2)
    probe = Incoherence()
    seen = []
    handle = job.model.get_submodule(NAME).register_forward_pre_hook(lambda m, a: seen.append((a[0], job.clock.row)))
    measure(job, {NAME: (probe,)})
    handle.remove()
    by_quarter: dict[int, list] = {}
    for call, (x, row) in zip(job.calls, seen, strict=True):
        assert torch.equal(row, job.rows(call))
        for sample, level in zip(x, job.adapter.noise_level(job.model, call).tolist(), strict=True):
            by_quarter.setdefault(min(int(level * 4), 3), []).append(sample.abs())
    want = [torch.stack(v) for _, v in sorted(by_quarter.items())]
    assert len(want) > 1
    assert probe.by_time == pytest.approx([float((v.amax(-1) / v.mean(-1)).mean()) for v in want], abs=1e-3)


def test_an_online_scale_is_seen():
    job = jobs.run((Smooth(alpha=1.0, online=True),), jobs.pipeline().transformer)
    plain, scaled = Incoherence(), Incoherence()
    measure(jobs.job(jobs.pipeline().transformer), {FC2: (plain,)})
    measure(job, {FC2: (scaled,)})
    layer, job2 = job.model.get_submodule(FC2), Incoherence()
    xs = []
    handle = layer.register_forward_pre_hook(lambda m, a: xs.append(a[0] * m.get_buffer("pre_scale")[0]))
    jobs.outputs(job.model)
    handle.remove()
    for x in xs:
        job2.update(x, torch.zeros(len(x), dtype=torch.int64))
    low, high = min(scaled.by_time), max(scaled.by_time)
    assert low - 1e-3 <= job2.by_time[0] <= high + 1e-3
    assert scaled.by_time != plain.by_time


def test_names_are_found_anywhere_and_the_empty_expression_finds_all():
    names = ["a.to_q", "a.to_k", "b.to_q"]
    assert named("x", "", names) == set(names)
    assert named("x", "to_q", names) == {"a.to_q", "b.to_q"}
    with pytest.raises(BadRecipe, match=r"x '\^to' is found in no layer's name"):
        named("x", "^to", names)
