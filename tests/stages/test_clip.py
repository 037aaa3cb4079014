"""The range search: never worse than the full range by its own measure, and guided by real inputs."""

import jobs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.errors import BadRecipe, BadValue
from dither.numerics import decode, encode, encode_int, grouped
from dither.spec import PER_TENSOR, Codebook, Int
from dither.stages import Assign, Clip, Rtn
from dither.stages.base import Job
from dither.stages.clip import _output_loss, _weight_loss, search_range

RATIOS = torch.linspace(1.0, 0.5, 11).tolist()


def heavy(n: int, k: int, seed: int = 0) -> torch.Tensor:
    """A weight with a few large values, for which the full range is a poor one."""
    w = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    return w + w.pow(3) / 3


def error(w: torch.Tensor, fmt: Int, grid=None) -> torch.Tensor:
    return decode(encode_int(w, fmt, *(grid or ())), fmt, tuple(w.shape)) - w


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 8), st.booleans(), st.sampled_from([0, PER_TENSOR, 4, 12]), st.booleans(), st.integers(0, 999)
)  # fmt: skip
def test_never_worse_than_round_to_nearest(bits, symmetric, group, outputs, seed):
    fmt, w = Int(bits, symmetric, group), heavy(5, 24, seed)
    x = torch.randn(64, 24, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.1, 3, 24)
    loss = _output_loss(x, fmt) if outputs else _weight_loss(2.4)
    found = search_range(w, fmt, RATIOS, loss)
    got, plain = (loss(grouped(e, group)).sum() for e in (error(w, fmt, found), error(w, fmt)))
    assert got <= plain * (1 + 1e-5)
    stored = encode_int(w, fmt, *found)
    assert {k: v.shape for k, v in stored.items()} == {k: v.shape for k, v in encode(w, fmt).items()}


def test_heavy_tails_are_clipped():
    w = heavy(16, 256)
    found = search_range(w, Int(3), RATIOS, _weight_loss(2.0))
    assert error(w, Int(3), found).square().sum() < 0.8 * error(w, Int(3)).square().sum()


def test_one_candidate_is_the_full_range():
    w = heavy(4, 16)
    for fmt in (Int(4), Int(4, False), Int(1)):
        scale, zero = search_range(w, fmt, [1.0], _weight_loss(2.0))
        plain = encode_int(w, fmt)
        assert torch.equal(scale, plain["scale"])
        assert zero is None or torch.equal(zero, plain["zero"])


def test_the_output_loss_is_the_output_error_of_each_group():
    x, gap = torch.randn(32, 12), torch.randn(5, 12)
    want = torch.stack([(gap[:, g : g + 4] @ x[:, g : g + 4].T).square().sum(1) for g in (0, 4, 8)], 1)  # (N, G)
    torch.testing.assert_close(_output_loss(x, Int(4, group=4))(grouped(gap, 4)), want)


def test_inputs_decide_what_is_kept():
    """A large weight that meets a silent channel is clipped; one that meets a loud channel is kept."""
    w = torch.full((1, 32), 0.6)
    w[0, 0] = 4.0
    ranges = []
    for loud in (1e-3, 10.0):
        x = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
        x[:, 0] *= loud
        ranges.append(float(search_range(w, Int(3), RATIOS, _output_loss(x, Int(3)))[0]))
    assert ranges[0] < 0.7 * ranges[1]


def jobs_with(stages, bits="w3") -> Job:
    return jobs.run(stages, jobs.pipeline().transformer, bits)


def test_the_grids_are_what_rtn_uses():
    model = jobs.pipeline().transformer
    job = jobs.run((Assign(weight=Int(3)), Clip(rows=256), Rtn()), model)
    assert set(job.grids) == set(job.specs)
    for name, (scale, _) in job.grids.items():
        assert torch.equal(model.get_submodule(name).get_buffer("weight_scale"), scale)


def test_judged_by_outputs_the_outputs_are_better():
    errors = {}
    want = jobs.outputs(jobs.pipeline().transformer)
    for label, clip in {"none": (), "outputs": (Clip(rows=4096, steps=30, smallest=0.4),)}.items():
        model = jobs.pipeline().transformer
        jobs.run((Assign(weight=Int(3)), *clip, Rtn()), model)
        errors[label] = float((jobs.outputs(model) - want).square().mean())
    assert errors["outputs"] < errors["none"]


def test_judged_by_weights_it_needs_no_data():
    model = jobs.pipeline().transformer

    def refuse():
        raise BadValue("no data here")

    job = jobs.job(model)
    job.record = refuse
    for stage in (Assign(weight=Int(3)), Clip(outputs=False), Rtn()):
        with torch.no_grad():
            stage.run(job)
    assert job.finish().layers


def test_formats_without_ranges_are_left_alone():
    job = jobs_with((Assign(weight=Codebook(2, 8), adaln=Int(4)), Clip(rows=64), Rtn()))
    assert {n.endswith("norm1.linear") for n in job.grids} == {True}
    assert job.finish().layers


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"steps": 0}, "steps 0"), ({"steps": 10**9}, "steps"), ({"smallest": 0.0}, "smallest"),
        ({"smallest": 1.5}, "smallest"), ({"smallest": float("nan")}, "smallest"), ({"power": 0.0}, "power"),
        ({"power": float("inf")}, "power"), ({"rows": 0}, "rows"),
    ],
)  # fmt: skip
def test_impossible_switches_are_named(fields, name):
    with pytest.raises(BadRecipe, match=rf"clip\.{name}"):
        jobs_with((Assign(weight=Int(3)), Clip(**fields), Rtn()))
