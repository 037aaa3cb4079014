"""Low-rank branches: optimal splits, what is stored, and fields that make no sense."""

import jobs
import pytest
import studies
import torch

from dither.errors import BadRecipe
from dither.models.base import linear_at
from dither.spec import Act, Int, LowRank
from dither.stages import Assign, Clip, Gptq, Rtn, SplitLowRank, TimedSmooth
from dither.stages.lowrank import best

W3 = Assign(weight=Int(3, False), act=Act(Int(8)), adaln=Int(4))
FC1, FC2 = "transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2"


def ran(*stages, store=None):
    job = jobs.job(jobs.pipeline().transformer)
    job.store = store
    with torch.no_grad():
        for stage in stages:
            stage.run(job)
    return job


def matrices(n, k, seed=0):
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(100, k, generator=make) * torch.rand(k, generator=make).mul(3).exp()
    return torch.randn(n, k, generator=make), x.T @ x / 100


@pytest.mark.parametrize(("n", "k"), [(8, 12), (12, 8), (10, 10)])
def test_the_best_of_a_rank_is_the_singular_values(n, k):
    e, _ = matrices(n, k)
    a, b = best(e, 3, None, None)
    assert a.shape == (3, k)
    assert b.shape == (n, 3)
    u, s, v = torch.linalg.svd(e)
    assert torch.allclose(b @ a, u[:, :3] * s[:3] @ v[:3], atol=1e-4)


@pytest.mark.parametrize(("n", "k"), [(8, 12), (12, 8), (10, 10)])
def test_weighted_it_is_the_best_for_the_output(n, k):
    e, h = matrices(n, k)
    root = torch.linalg.cholesky(h)
    a, b = best(e, 3, h, root)
    u, s, v = torch.linalg.svd(e @ root)
    want = u[:, :3] * s[:3] @ v[:3] @ torch.linalg.inv(root)
    assert torch.allclose(b @ a, want, atol=1e-3)
    plain = torch.matmul(*best(e, 3, None, None)[::-1])

    def loss(x):
        return float(((e - x) @ h * (e - x)).sum())

    assert loss(b @ a) < loss(plain)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_the_function_stays_and_the_branch_is_stored_as_asked(bits):
    job = ran(W3, SplitLowRank(rank=2, bits=bits))
    assert jobs.relative_error(jobs.outputs(job.model), jobs.outputs(jobs.pipeline().transformer)) < 1e-5
    assert job.specs[FC1].lowrank == LowRank(2, None if bits is None else Int(bits))
    names = {
        n.removeprefix("lowrank_") for n, _ in linear_at(job.model, FC1).named_buffers() if n.startswith("lowrank_")
    }
    assert names == ({"a_dense", "b_dense"} if bits is None else {"a_codes", "a_scale", "b_codes", "b_scale"})


def test_modulation_and_kept_layers_have_none():
    job = ran(W3, SplitLowRank(rank=2))
    assert {job.layers[n].kind for n, s in job.specs.items() if s.lowrank is None} == {"adaln"}


def test_more_rounds_and_more_rank_leave_less():
    plain = jobs.pipeline().transformer

    def left(**fields):
        job = ran(W3, SplitLowRank(**fields), Rtn())
        return sum(
            float((linear_at(job.model, n).dequantized() - linear_at(plain, n).weight.detach()).square().sum())
            for n, s in job.specs.items()
            if s.lowrank is not None
        )

    one, ten = left(rank=2, rounds=1), left(rank=2, rounds=10)
    assert ten < one
    assert left(rank=4, rounds=10) < ten
    assert left(rank=8, bits=None) < left(rank=4, bits=None)


def test_pictures_are_nearer_with_a_branch():
    def error(*stages):
        return float((jobs.outputs(ran(*stages).model) - jobs.outputs(jobs.pipeline().transformer)).square().mean())

    alone, plain, weighted = (
        error(W3, Rtn()),
        error(W3, SplitLowRank(rank=4), Rtn()),
        error(W3, SplitLowRank(rank=4, weighted=True), Gptq(), Rtn()),
    )
    assert weighted < plain < alone


def test_the_rank_follows_the_width_unless_it_is_given():
    assert ran(W3, SplitLowRank()).specs[FC2].lowrank.rank == 1  # 16 / 36
    assert ran(W3, SplitLowRank(rank=5, layers="ff")).specs[FC2].lowrank.rank == 5


def test_only_named_layers():
    job = ran(W3, SplitLowRank(rank=2, layers=r"ff\.net\.2"))
    assert {n for n, s in job.specs.items() if s.lowrank is not None} == {FC2, FC2.replace("0", "1", 1)}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rank": 17}, r"low-rank\.rank 17: layer 'transformer_blocks\.0\.attn1\.to_q' is \(16, 16\)"),
        ({"rank": -1}, r"low-rank\.rank -1"),
        ({"rounds": 0}, r"low-rank\.rounds 0"),
        ({"bits": 9}, r"low-rank\.bits 9"),
        ({"bits": 1}, r"low-rank\.bits 1"),
        ({"memory": 0.0}, r"low-rank\.memory 0"),
        ({"layers": "nowhere"}, r"low-rank\.layers 'nowhere'"),
    ],
)
def test_fields_that_make_no_sense_are_named(fields, says):
    with pytest.raises(BadRecipe, match=says):
        ran(W3, SplitLowRank(**fields))


def test_stages_that_have_looked_at_the_weight_already_are_refused():
    with pytest.raises(BadRecipe, match="put 'low-rank' before it"):
        ran(W3, Clip(outputs=False), SplitLowRank(rank=2))
    with pytest.raises(BadRecipe, match="has a branch already"):
        ran(W3, SplitLowRank(rank=2), SplitLowRank(rank=2))
    with pytest.raises(BadRecipe, match="low-rank branch, which cannot be scaled by range"):
        ran(W3, SplitLowRank(rank=2), TimedSmooth())
    with pytest.raises(BadRecipe, match="no such layer is to have integers or other codes"):
        ran(Assign(act=Act(Int(8))), SplitLowRank(rank=2))


def test_an_interrupted_run_goes_on_with_the_branches_it_has():
    stages = (W3, SplitLowRank(rank=2), Rtn())
    whole, store = ran(*stages), studies.Kept(7)
    with pytest.raises(KeyboardInterrupt):
        ran(*stages, store=store)
    store.most = 10**9
    assert jobs.same_tensors(ran(*stages, store=store).model, whole.model)


def test_weighted_branches_that_are_kept_need_no_pass():
    stages = (W3, SplitLowRank(rank=2, rounds=2, weighted=True), Rtn())
    store = studies.Kept()
    whole = ran(*stages, store=store)
    job = jobs.job(jobs.pipeline().transformer)
    job.store, job.record = store, lambda: pytest.fail("calls were asked for")
    with torch.no_grad():
        for stage in stages:
            stage.run(job)
    assert jobs.same_tensors(job.model, whole.model)


def test_the_best_round_is_kept_not_the_last():
    plain = jobs.pipeline().transformer

    def left(rounds):
        job = ran(
            Assign(weight=Int(2, False, 8), adaln=Int(4)),
            SplitLowRank(rank=2, rounds=rounds, bits=None, layers="to_q"),
            Rtn(),
        )
        names = [n for n, s in job.specs.items() if s.lowrank is not None]
        return [
            float((linear_at(job.model, n).dequantized() - linear_at(plain, n).weight.detach()).square().sum())
            for n in names
        ]

    for few, more in ((1, 3), (3, 10), (10, 40)):
        assert all(b <= a * (1 + 1e-4) for a, b in zip(left(few), left(more), strict=True))


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_get_branches_too(bits, dtype):
    job = jobs.job(jobs.pipeline().transformer)
    model = job.model.to(dtype)
    with torch.no_grad():
        for stage in (Assign(weight=Int(3)), SplitLowRank(rank=2, bits=bits), Rtn()):
            stage.run(job)
    job.finish()
    x = torch.randn(2, 16, dtype=dtype)
    assert torch.isfinite(linear_at(model, FC1)(x)).all()
