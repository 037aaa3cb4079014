"""The denoiser as promised, for a while: what stands in for each layer, and the error there."""

import jobs
import pytest
import torch

from dither.errors import BadValue
from dither.numerics import decode, encode, fake_quantize, grid
from dither.spec import Act, Int
from dither.stages import Assign, Rtn
from dither.stages.quantized_point import SquaredError, twins
from dither.stages.watching import Piece

FC2 = "transformer_blocks.0.ff.net.2"


def test_a_static_layer_rounds_by_the_ranges_of_the_time():
    act = Act(Int(4, False), True)
    job = jobs.run((Assign(weight=Int(3), act=act, time_groups=3),), jobs.pipeline().transformer)
    names = [n for n, s in job.specs.items() if s.act is not None]
    width = job.dense(FC2).shape[1]
    lo, hi = -torch.rand(3, width) - 0.5, torch.rand(3, width) + torch.tensor([[0.5], [2.0], [8.0]])
    ranges = {n: (lo[:, : job.dense(n).shape[1]], hi[:, : job.dense(n).shape[1]]) for n in names}
    twin = twins(job, ranges)[FC2]
    fmt, w = job.specs[FC2].weight, job.dense(FC2)
    rounded = decode(encode(w, fmt), fmt, tuple(w.shape))
    x = torch.randn(2, 5, width)
    job.clock.tell(torch.tensor([2, 0]))
    got = twin(x)
    for i, row in enumerate((2, 0)):
        seen = fake_quantize(x[i], act.grid, *grid(lo[row].amin()[None], hi[row].amax()[None], act.grid))
        torch.testing.assert_close(got[i], seen @ rounded.T + job.model.get_submodule(FC2).bias)


def test_finished_layers_have_no_twin_and_dynamic_ones_need_no_range():
    job = jobs.run((Assign(weight=Int(3), act=Act(Int(4)), adaln=Int(4)),), jobs.pipeline().transformer)
    assert set(twins(job, {})) == set(job.specs)
    with torch.no_grad():
        Rtn().run(job)
    assert twins(job, {}) == {}


def test_the_error_is_held_against_the_answers_before():
    error = SquaredError("test")
    piece = Piece(3, slice(4, 8), torch.zeros(2), None)
    full = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert error.remember(piece, full) == []
    y = (full + 0.5).requires_grad_()
    (loss,) = error.losses(piece, y)
    assert float(loss.detach()) == pytest.approx(4 * 0.25)
    assert torch.autograd.grad(loss, y)[0].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    error.check()
    with pytest.raises(KeyError):
        error.losses(Piece(4, slice(4, 8), torch.zeros(2), None), y)


def test_no_error_is_refused():
    error = SquaredError("test")
    piece = Piece(0, slice(0, 4), torch.zeros(2), None)
    error.remember(piece, torch.ones(2, 3))
    error.losses(piece, torch.ones(2, 3) + 1e-6)
    with pytest.raises(BadValue, match=r"test\.quantized: .* \(squared error .* of 6\)"):
        error.check()
