"""The Hessian's trace: against the whole Jacobian, in exact cases, and the search that is made of it."""

from itertools import product

import jobs
import pytest
import studies
import torch
from torch import nn

from dither.calibrate import replay
from dither.errors import BadModel, BadRecipe, BadValue
from dither.models import Call, adapter_for
from dither.spec import Act, Bits, Int
from dither.stages import Assign, HessianTrace, Job, Rotate, Smooth
from dither.stages.granularity import Limits, problem_of
from dither.stages.hessian_trace import squared_gradients
from dither.stages.nesting import rounded

GROUPED = Assign(weight=Int(3, False, 8), act=Act(Int(4, group=8)), adaln=Int(3, False, 8))
FEW = Assign(weight=Int(3, False, 8), exclude=r"norm1|ff")
SIZES = (4, 8, 16)
OUT = "transformer_blocks.0.attn1.to_out.0"


class Chain(nn.Module):
    """y = second(first(x)), and a linear that y does not depend on."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(*first.shape[::-1]), nn.Linear(*second.shape[::-1])
        self.aside = nn.Linear(*first.shape[::-1])
        self.first.weight.data, self.second.weight.data = first, second

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        self.aside(x)
        return (self.second(self.first(x)),)


def job_of(model: nn.Module, *calls: Call, seed: int = 0) -> Job:
    return Job(model, adapter_for(model), Bits(4, 8), seed, lambda: calls)


def prepared(*stages, seed: int = 0, store=None):
    job, _ = studies.job(jobs.pipeline(), store=store)
    job.seed = seed
    with torch.no_grad():
        for stage in stages:
            stage.run(job)
    return job


def orthogonal(n: int, k: int, seed: int) -> torch.Tensor:
    """(n, k) with orthonormal rows."""
    return torch.linalg.qr(torch.randn(k, k, generator=torch.Generator().manual_seed(seed)))[0][:n].contiguous()


@pytest.mark.parametrize("size", [3, 40], ids=["by weights", "by tokens"])
def test_where_any_signs_do_it_is_exact(size):
    """Rows of the second weight are orthogonal, and so are a sample's two tokens: no cross terms are left.

    With h = W1 x + b the trace is sum over tokens of N |h|^2 for W2 (N, K), and of ||W2||_F^2 |x|^2 for W1.
    """
    first, second = torch.eye(size), 2 * orthogonal(2, size, 1)
    model = Chain(first, second)
    model.first.bias.data.zero_()
    x = torch.zeros(3, 2, size)
    x[:, 0, 0] = torch.tensor([1.0, 2.0, 3.0])
    x[:, 1, 1] = 5.0
    found = squared_gradients(job_of(model, Call((x,), {})), 0, ["first", "second", "aside"], 1)
    energy = 1 + 4 + 9 + 3 * 25
    assert found["second"] == pytest.approx(2 * energy, rel=1e-5)
    assert found["first"] == pytest.approx((2 * 4) * energy, rel=1e-5)
    assert found["aside"] == 0


def test_with_many_draws_it_is_the_trace_of_the_gauss_newton_hessian():
    job = prepared(GROUPED)
    model, call = job.model, Call((), {k: v[:1] if torch.is_tensor(v) else v for k, v in job.calls[0].kwargs.items()})
    job = job_of(model, Call(tuple(a[:1] if torch.is_tensor(a) else a for a in job.calls[0].args), call.kwargs))
    names = [OUT, "transformer_blocks.1.norm1.linear", "transformer_blocks.0.ff.net.2"]
    want = {}
    for name in names:
        weight = model.get_submodule(name).weight
        y = replay(model, job.calls[0], gradients=True)[0]
        rows = [torch.autograd.grad(value, weight, retain_graph=True)[0] for value in y.flatten()]
        want[name] = sum(float(row.square().sum()) for row in rows)  # ||J||_F^2 = tr(J^T J)
    assert squared_gradients(job, 0, names, 300) == pytest.approx(want, rel=0.08)


def test_a_rotated_weight_has_the_trace_of_the_plain_one_and_a_scaled_one_has_not():
    plain, rotated, scaled = prepared(GROUPED), prepared(Rotate(), GROUPED), prepared(Smooth(online=True), GROUPED)
    names = list(plain.specs)
    want = squared_gradients(plain, 2, names, 1)
    assert squared_gradients(rotated, 2, names, 1) == pytest.approx(want, rel=1e-3)  # dW' = e^T (x R)
    got = squared_gradients(scaled, 2, names, 1)
    assert any(abs(got[n] / want[n] - 1) > 0.1 for n in names)


def test_the_model_is_left_as_it_was():
    job = prepared(GROUPED)
    job.model.proj_out_2.bias.requires_grad_(False)
    flags = [p.requires_grad for p in job.model.parameters()]
    want = jobs.outputs(job.model)
    with torch.no_grad():
        squared_gradients(job, 0, list(job.specs), 2)
    assert [p.requires_grad for p in job.model.parameters()] == flags
    assert all(p.grad is None for p in job.model.parameters())
    assert not any(m._forward_hooks for m in job.model.modules())
    assert torch.equal(jobs.outputs(job.model), want)


def test_signs_follow_from_the_seed_and_the_call():
    job, same, other = prepared(GROUPED), prepared(GROUPED), prepared(GROUPED, seed=1)
    want = squared_gradients(job, 0, [OUT], 1)
    assert squared_gradients(same, 0, [OUT], 1) == want != squared_gradients(other, 0, [OUT], 1)
    twice = squared_gradients(job, 0, [OUT], 2)
    assert twice != want


def test_bad_models_are_named():
    class Lazy(Chain):
        def forward(self, x):
            return (self.second(x),)

    call = Call((torch.ones(2, 3, 4),), {})
    with pytest.raises(BadModel, match="denoiser call 0 did not reach layer 'first'"):
        squared_gradients(job_of(Lazy(torch.eye(4), torch.eye(4)), call), 0, ["second", "first"], 1)
    with pytest.raises(BadValue, match="the gradient at layer 'first' holds NaN or infinity"):
        squared_gradients(job_of(Chain(torch.eye(4), torch.full((4, 4), torch.inf)), call), 0, ["first"], 1)

    class Text(Chain):
        def forward(self, x):
            return "none"

    with pytest.raises(BadModel, match="the denoiser returns str where a tensor is needed"):
        squared_gradients(job_of(Text(torch.eye(4), torch.eye(4)), call), 0, ["first"], 1)


# --- the search


def test_the_loss_is_the_mean_trace_times_the_squared_error_and_no_genome_has_less():
    stage = HessianTrace(sizes=SIZES, bits=8.0, calls=2, probes=2)
    job, plain = prepared(FEW, stage), prepared(FEW)
    with torch.no_grad():
        asked = problem_of(plain, stage.tag, SIZES, Limits(8.0))
    middles = [len(plain.calls) // 4, 3 * len(plain.calls) // 4]
    traces = [squared_gradients(plain, i, list(plain.specs), 2) for i in middles]
    samples = sum(len(plain.rows(plain.calls[i])) for i in middles)

    def omega(name: str, size: int) -> float:
        w = plain.dense(name)
        error = float((rounded(w, Int(3, False, size)) - w).square().sum())
        return sum(t[name] for t in traces) / samples / w.numel() * error

    table = [[sum(omega(n, s) for n in u.layers) for s in u.sizes] for u in asked.units]

    def loss(genome):
        return sum(row[i] for row, i in zip(table, genome, strict=True))

    said = job.notes["hessian-trace"]
    allowed = [g for g in product(range(3), repeat=len(asked.units)) if asked.allows(g)]
    assert said["loss"] == pytest.approx(min(map(loss, allowed)), rel=1e-4)
    assert said["uniform_loss"] == pytest.approx(loss(asked.uniform), rel=1e-4)
    assert said["costs"]["bits"] <= 8.0
    assert (said["model_samples"], said["gradient_samples"]) == (samples, 2 * samples)
    assert {n: s.weight.group for n, s in job.specs.items()} == said["groups"]


def test_a_few_calls_are_spread_over_time_and_never_more_than_there_are():
    store = studies.Kept()
    job = prepared(FEW, HessianTrace(sizes=SIZES, calls=3), store=store)
    count = len(job.calls)
    assert count == 4
    assert [f"sensitivity.hessian-trace.{i}" in store for i in range(count)] == [True, False, True, True]
    assert job.notes["hessian-trace"]["model_samples"] == 3 * 20
    assert prepared(FEW, HessianTrace(sizes=SIZES, calls=99)).notes["hessian-trace"]["model_samples"] == count * 20


def test_an_interrupted_search_goes_on():
    stage = HessianTrace(sizes=SIZES, calls=3)
    whole = prepared(GROUPED, stage)
    store = studies.Kept(2)
    with pytest.raises(KeyboardInterrupt):
        prepared(GROUPED, stage, store=store)
    store.most = 10**9
    resumed = prepared(GROUPED, stage, store=store)
    assert resumed.notes == whole.notes
    assert resumed.specs == whole.specs


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (HessianTrace(calls=0), "hessian-trace.calls 0: must be at least 1"),
        (HessianTrace(probes=0), "hessian-trace.probes 0: must be at least 1"),
        (HessianTrace(seconds=-1.0), "hessian-trace.seconds -1: must be positive"),
        (HessianTrace(sizes=SIZES, bits=4.0), "hessian-trace.bits 4: the coarsest sizes take"),
    ],
)
def test_bad_fields_are_named(stage, words):
    with pytest.raises(BadRecipe, match=words):
        prepared(GROUPED, stage)
