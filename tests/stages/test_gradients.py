"""Sampled inputs and squared gradients: against autograd and whole Jacobians, their shares, and what is refused."""

from collections.abc import Sequence
from dataclasses import replace

import jobs
import pytest
import torch
from torch import nn

from dither.calibrate import replay
from dither.errors import BadRecipe, BadValue
from dither.models import Call, adapter_for
from dither.spec import Act, Bits, Int, LinearSpec
from dither.stages import Assign, Job, Rotate, Rtn
from dither.stages.gradients import Passes
from dither.stages.watching import pieces

FC1, FC2 = "transformer_blocks.1.ff.net.0.proj", "transformer_blocks.0.ff.net.2"
ADALN = "transformer_blocks.0.norm1.linear"
NAMES = [FC1, FC2, ADALN]
TIMED = Assign(weight=Int(4), act=Act(Int(8, False), True), adaln=Int(8), time_groups=3, branches=2)
ALL = 10**6


class Chain(nn.Module):
    """y = second(first(x)), and a linear on whose output y depends as much as ``share`` says."""

    def __init__(self, second: torch.Tensor, share: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.aside = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight.data, self.share = second, share

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        aside = self.aside(x)
        y = self.second(self.first(x))
        return (y + self.share * aside if self.share else y,)


def chain(second: torch.Tensor, share: float = 0.0) -> Job:
    model = Chain(second, share)
    calls = tuple(Call((torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(i)),), {}) for i in range(4))
    return Job(model, adapter_for(model), Bits(4, 8), 0, lambda: calls)


def job_of(*stages, seed: int = 0) -> Job:
    return jobs.run(stages, jobs.pipeline().transformer, seed=seed)


def samples(job: Job, passes: Passes, names: list[str] | None = None):
    with torch.no_grad():
        return passes.samples(job, names or NAMES)


def whole_inputs(job: Job, name: str, index: int) -> torch.Tensor:
    """(B, T, K) of a call."""
    seen: list[torch.Tensor] = []
    handle = job.model.get_submodule(name).register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    replay(job.model, job.calls[index])
    handle.remove()
    return seen[0].reshape(len(job.rows(job.calls[index])), -1, seen[0].shape[-1])


def where(x: torch.Tensor, tokens: torch.Tensor) -> list[int]:
    """Which of x (n, K) each token is, as another batch gave it: to the last bits."""
    near = torch.cdist(tokens, x, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert float(near.values.max()) < 1e-4
    return near.indices.tolist()


def test_where_any_signs_do_it_is_exact():
    """dL/dz of the last layer is v, and of the one before it W^T v with a diagonal W: squares are 1 and the diagonal's."""
    diagonal = torch.tensor([1.0, 2.0, 0.5, 3.0])
    job = chain(torch.diag(diagonal))
    found = samples(job, Passes("test", 4, ALL), ["first", "second"])
    assert found["second"].weight.shape == (4 * 6 * 3, 4)
    assert torch.equal(found["second"].weight, torch.ones(72, 4))
    torch.testing.assert_close(found["first"].weight, diagonal.square().expand(72, 4))
    every = torch.cat([c.args[0].reshape(-1, 4) for c in job.calls])
    torch.testing.assert_close(found["first"].x.sort(0).values, every.sort(0).values)


def test_with_many_draws_squares_are_the_diagonal_of_the_gauss_newton_hessian():
    job = job_of(TIMED)
    call = next(iter(pieces(job, 1))).call
    call = Call(
        tuple(a[:1] for a in call.args), {k: v[:1] if torch.is_tensor(v) else v for k, v in call.kwargs.items()}
    )
    job._calls = (call,)
    found = samples(job, Passes("test", 1, 4, probes=400))
    for name in NAMES:
        out: list[torch.Tensor] = []

        def hook(m, a, y, out=out):
            y.requires_grad_(y.requires_grad or y.is_leaf)
            out.append(y)

        handle = job.model.get_submodule(name).register_forward_hook(hook)
        y = replay(job.model, call, gradients=True)[0]
        handle.remove()
        rows = [
            torch.autograd.grad(value, out[0], retain_graph=True)[0].reshape(-1, out[0].shape[-1])
            for value in y.flatten()
        ]
        exact = torch.stack(rows).square().sum(0)  # (T, N): sum over outputs of (d eps_i / dz)^2
        x = whole_inputs(job, name, 0)[0]
        picked = where(x, found[name].x)
        assert len(picked) == min(4, len(x))
        want, got = exact[picked], found[name].weight
        assert float((got - want).norm() / want.norm()) < 0.12
        assert float(got.sum()) == pytest.approx(float(want.sum()), rel=0.05)


def test_at_the_quantized_point_they_are_those_of_the_squared_error():
    plan = Assign(weight=Int(3), act=Act(Int(4)), adaln=Int(3))
    job, rounded = job_of(plan), job_of(plan, Rtn())
    found = samples(job, Passes("test", 1, ALL, quantized=True))
    index = len(job.calls) // 2
    with torch.no_grad():
        full = replay(job.model, job.calls[index])[0]
    for name in NAMES:
        out: list[torch.Tensor] = []

        def hook(m, a, y, out=out):
            y.requires_grad_(y.requires_grad or y.is_leaf)
            out.append(y)

        handle = rounded.model.get_submodule(name).register_forward_hook(hook)
        loss = (replay(rounded.model, job.calls[index], gradients=True)[0] - full).square().sum()
        handle.remove()
        want = torch.autograd.grad(loss, out[0])[0].square().flatten(0, -2)  # (B T, N)
        x = whole_inputs(job, name, index).flatten(0, 1)  # of full precision
        order = where(x, found[name].x)
        assert len(order) == len(x)
        if name != ADALN:  # one class gives several samples of a call the same modulation
            assert sorted(order) == list(range(len(x)))
            torch.testing.assert_close(found[name].weight, want[order], rtol=1e-2, atol=float(want.max()) * 1e-4)
        torch.testing.assert_close(found[name].weight.sum(0), want.sum(0), rtol=1e-2, atol=float(want.max()) * 1e-4)


def test_clock_rows_have_equal_shares_and_tokens_know_theirs():
    job = job_of(TIMED)
    found = samples(job, Passes("test", 99, 240))
    for name in (FC1, FC2):
        rows = found[name].rows
        seen = {r for c in job.calls for r in job.rows(c).tolist()}
        assert {r: int((rows == r).sum()) for r in seen} == dict.fromkeys(seen, 240 // len(seen))
        assert len(seen) == 6
        every = [(whole_inputs(job, name, i), job.rows(c)) for i, c in enumerate(job.calls)]
        for row in seen:
            where(torch.cat([x[r == row].flatten(0, 1) for x, r in every]), found[name].x[rows == row])
    assert len(found[ADALN].x) == sum(len(job.rows(c)) for c in job.calls)  # one token a sample, and no more


def test_ranges_are_those_of_all_tokens_of_the_passes():
    job = job_of(TIMED)
    found = samples(job, Passes("test", 99, 12))[FC2]
    for row in range(6):
        mine = torch.cat([whole_inputs(job, FC2, i)[job.rows(c) == row].flatten(0, 1) for i, c in enumerate(job.calls)])
        torch.testing.assert_close(found.lo[row], mine.amin(0))
        torch.testing.assert_close(found.hi[row], mine.amax(0))


def test_inputs_are_those_after_online_transforms():
    plain, rotated = job_of(TIMED), job_of(Rotate(), TIMED)
    a, b = samples(plain, Passes("test", 2, 24))[FC2], samples(rotated, Passes("test", 2, 24))[FC2]
    torch.testing.assert_close(rotated.model.get_submodule(FC2).transform(a.x), b.x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a.weight, b.weight, rtol=1e-2, atol=1e-7)  # the output is the same


def test_what_a_sample_counts_multiplies_its_squares():
    plain = samples(job_of(TIMED), Passes("test", 2, ALL))
    job = job_of(TIMED)

    def weigh(job: Job, calls: Sequence[Call]) -> list[torch.Tensor]:
        return [1.0 + (torch.arange(len(job.rows(call))) == 3) * 9 for call in calls]

    found = samples(job, Passes("test", 2, ALL, weigh=weigh))
    for name in NAMES:
        ratio = found[name].weight.sum(1) / plain[name].weight.sum(1)
        each = len(ratio) // (2 * 20)
        assert torch.unique(ratio.round(decimals=3)).tolist() == [1, 10]
        assert int((ratio > 5).sum()) == 2 * each
        assert torch.equal(found[name].x, plain[name].x)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_what_samples_count_is_checked(bad):
    passes = Passes("test", 1, 8, weigh=lambda job, calls: [torch.ones(6), torch.full((6,), bad)])
    with pytest.raises(BadValue, match="test: samples of denoiser call 1 count"):
        samples(chain(torch.eye(4)), passes, ["first"])


def test_one_seed_gives_one_sample():
    first, again, other = (samples(job_of(TIMED, seed=s), Passes("test", 2, 24))[FC1] for s in (0, 0, 1))
    assert all(torch.equal(vars(first)[key], vars(again)[key]) for key in vars(first))
    assert not torch.equal(first.weight, other.weight)
    assert not torch.equal(first.x, other.x)


@pytest.mark.parametrize("quantized", [False, True])
def test_the_model_is_left_as_it_was(quantized):
    job = job_of(TIMED)
    modules, want = dict(job.model.named_modules()), jobs.outputs(job.model)
    samples(job, Passes("test", 2, 24, quantized=quantized))
    assert dict(job.model.named_modules()) == modules
    assert torch.equal(jobs.outputs(job.model), want)
    assert all(p.requires_grad and p.grad is None for p in job.model.parameters())


# --- what is refused


def test_a_layer_that_nothing_depends_on_is_named():
    with pytest.raises(BadValue, match=r"test: the squared gradients at layer 'aside' are 0: .* exclude it"):
        samples(chain(torch.eye(4)), Passes("test", 2, 8), ["first", "aside"])
    with pytest.raises(BadValue, match=r"at layer 'aside' are 1\.0e-14 of those at 'second', which is rounding noise"):
        samples(chain(torch.eye(4), 1e-7), Passes("test", 2, 8), ["second", "aside"])
    samples(chain(torch.eye(4), 1e-5), Passes("test", 2, 8), ["second", "aside"])


def test_a_model_without_any_gradient_is_refused():
    with pytest.raises(BadValue, match="at layer 'first' are 0"):
        samples(chain(torch.zeros(4, 4)), Passes("test", 2, 8), ["first"])


def test_a_gradient_that_is_not_finite_names_its_layer():
    with pytest.raises(BadValue, match="the gradient at layer 'first' holds NaN or infinity"):
        samples(chain(torch.full((4, 4), torch.inf)), Passes("test", 2, 8), ["second", "first"])


def test_an_error_that_is_none_has_no_gradient():
    """Weights on the grid round to themselves, and inputs are not quantized."""
    job = chain(torch.diag(torch.tensor([1.0, -1, 1, 1])))
    job.promise("second", LinearSpec(Int(8)))
    with pytest.raises(BadValue, match=r"test\.quantized: the quantized denoiser answers as full precision does"):
        samples(job, Passes("test", 2, 8, quantized=True), ["second"])
    samples(job, Passes("test", 2, 8), ["second"])


@pytest.mark.parametrize("field", ["calls", "rows", "probes"])
def test_bad_fields_are_named(field):
    with pytest.raises(BadRecipe, match=rf"test\.{field} 0: must be at least 1"):
        replace(Passes("test", 1, 1), **{field: 0}).check()


def test_each_clock_row_needs_a_token():
    with pytest.raises(BadRecipe, match=r"test\.rows 5: fewer than one for each of 6 clock rows"):
        samples(job_of(TIMED), Passes("test", 99, 5))
