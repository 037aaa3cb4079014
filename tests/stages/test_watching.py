"""Replaying calls with gradients: pieces, uses of layers, and gradients by what layers give."""

import jobs
import pytest
import torch
from torch import nn

from dither.models import Call, adapter_for
from dither.spec import Act, Bits, Int
from dither.stages import Assign, Job, Rotate
from dither.stages.watching import answer, gradients, inputs, pieces, signs, spread, watched

FC2 = "transformer_blocks.0.ff.net.2"


class Twice(nn.Module):
    """y = last(f(f(x))) with one linear f used twice, and one that nothing reads; ``shared`` belongs to all samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f, self.last, self.aside, self.embed = (nn.Linear(3, 3) for _ in range(4))
        self.shared = torch.ones(1, 2, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        self.aside(x)
        return (self.last(torch.tanh(self.f(torch.tanh(self.f(x))))) + self.embed(self.shared),)


def twice() -> Job:
    model = Twice()
    x = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(1))
    return Job(model, adapter_for(model), Bits(8, 8), 0, lambda: (Call((x,), {}),))


def test_indices_are_the_middles_of_equal_parts():
    assert spread(25, 1) == [12]
    assert spread(10, 5) == [1, 3, 5, 7, 9]
    assert spread(3, 8) == [0, 1, 2]


def test_pieces_are_the_call_cut_by_samples_and_the_clock_knows_each():
    job = jobs.run(
        (Assign(weight=Int(8), act=Act(Int(8), True), time_groups=3, branches=2),), jobs.pipeline().transformer
    )
    call, rows = job.calls[0], job.rows(job.calls[0])
    seen = []
    for piece in pieces(job, 0):
        assert torch.equal(job.clock.row, piece.rows)
        assert len(piece.rows) == len(piece.call.args[0]) == len(piece.call.kwargs["class_labels"])
        seen.append(piece)
    assert len(seen) == 5
    assert torch.equal(torch.cat([p.rows for p in seen]), rows)
    assert torch.equal(torch.cat([p.call.args[0] for p in seen]), call.args[0])
    for key, value in call.kwargs.items():
        if torch.is_tensor(value):
            assert torch.equal(torch.cat([p.call.kwargs[key] for p in seen]), value)
        else:
            assert all(p.call.kwargs[key] == value for p in seen)


def test_gradients_are_autograds_for_each_use_and_0_where_nothing_depends():
    job = twice()
    names = ["f", "last", "aside", "embed"]
    for piece in pieces(job, 0):
        x, b = piece.call.args[0], len(piece.rows)
        with watched(job.model, names) as seen:
            y = answer(job.model, piece, seen)
            got_x = dict(inputs(seen, b))
            got_e = dict(gradients(y.square().sum(), seen, b))
        m = job.model
        first = m.f(x)
        second = m.f(torch.tanh(first))
        out = m.last(torch.tanh(second))
        z = m.embed(m.shared)
        loss = (out + z).square().sum()
        want = torch.autograd.grad(loss, [first, second, out, z])
        torch.testing.assert_close(got_x["f"], torch.cat([x, torch.tanh(first)], 1).detach())
        torch.testing.assert_close(got_e["f"], torch.cat(want[:2], 1))
        torch.testing.assert_close(got_e["last"], want[2])
        assert got_e["embed"].shape == (1, 2, 3)  # one for all samples
        torch.testing.assert_close(got_e["embed"], want[3])
        assert not got_e["aside"].any()


def test_a_graph_can_be_used_again_unless_it_is_the_last_time():
    job = twice()
    piece = next(iter(pieces(job, 0)))
    with watched(job.model, ["f"]) as seen:
        y = answer(job.model, piece, seen)
        first = dict(gradients(y.sum(), seen, 4, last=False))
        assert torch.equal(dict(gradients(2 * y.sum(), seen, 4))["f"], 2 * first["f"])
        with pytest.raises(RuntimeError, match="second time"):
            dict(gradients(y.sum(), seen, 4))


def test_inputs_are_what_the_weight_multiplies():
    job = jobs.run((Rotate(), Assign(weight=Int(8))), jobs.pipeline().transformer)
    plain = jobs.run((Assign(weight=Int(8)),), jobs.pipeline().transformer)
    got = []
    for each in (job, plain):
        piece = next(iter(pieces(each, 0)))
        with watched(each.model, [FC2]) as seen:
            answer(each.model, piece, seen)
            got.append(dict(inputs(seen, len(piece.rows)))[FC2])
    module = job.model.get_submodule(FC2)
    torch.testing.assert_close(got[0], module.transform(got[1]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got[0], got[1])


def test_signs():
    found = signs(torch.empty(1000), torch.Generator().manual_seed(0))
    assert sorted(set(found.tolist())) == [-1, 1]
    assert abs(float(found.float().mean())) < 0.1
